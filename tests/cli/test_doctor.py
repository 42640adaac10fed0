"""mapformers doctor: what runs here, readable by people and programs."""

import json

import pytest

from mapformers.cli.main import run
from mapformers.kernels.native.library import load


def test_it_says_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    facts = {line[:13].strip(): line[14:] for line in lines if not line.startswith(("-", "what"))}
    assert facts["kernel"].startswith("native" if load().library else "torch (")
    assert {"compiler", "cache", "threads", "allocator", "vectors"} <= set(facts)


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert isinstance(facts["advice"], list)
    assert facts["kernel"].startswith("native") == (load().library is not None)
