"""The public audit: all of the map passes, and modules of others are made, called and judged."""

import json
import textwrap
from pathlib import Path

import pytest

from mapformers.catalog import CATALOG
from mapformers.cli.main import run
from mapformers.core.errors import MapformersError
from mapformers.measure import audits
from mapformers.measure.audits import Question, audit_entry, audit_module
from mapformers.measure.record import read_record

LEAKY = '''
    import torch
    from torch import nn

    class Mean(nn.Module):
        """Adds the mean of all tokens: the mask of a causal layer was forgotten."""

        def __init__(self, scale=1.0):
            super().__init__()
            self.scale = scale

        def forward(self, x):
            return x + self.scale * x.mean(1, keepdim=True)

    class Loudest(nn.Module):
        """Scales all tokens by the place of the loudest: no value moves, the choice does."""

        def forward(self, x):
            return x * x.norm(dim=-1).argmax(1).view(-1, 1, 1).to(x.dtype)

    def no_module(size=1):
        return size
'''


@pytest.fixture
def leaky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file with modules of somebody, in the folder in which commands are given."""
    (tmp_path / "leaky_layers.py").write_text(textwrap.dedent(LEAKY))
    monkeypatch.chdir(tmp_path)
    return "leaky_layers"


@pytest.mark.slow
@pytest.mark.parametrize("name", [entry.card.name for entry in CATALOG])  # type: ignore[attr-defined]
def test_every_entry_of_the_map_passes(name: str) -> None:
    found = audit_entry(name, length=48)
    assert found.report.passed, str(found.report)
    card = next(entry.card for entry in CATALOG if entry.card.name == name)  # type: ignore[attr-defined]
    checked = "future" in found.report.families
    assert checked == (card.causal == "strict" and name != "local_global"), found.report.notes


def test_specs_are_audited_as_they_are_written() -> None:
    found = audit_entry("band(window=3):2 + full:2", length=16)
    assert found.built == "band(window=3):2 + full:2"
    assert found.report.passed


def test_a_leak_of_values_and_a_leak_of_selection_are_told_apart(leaky: str) -> None:
    values = audit_module(Question(f"{leaky}:Mean", {"scale": 0.5}, dim=8), length=16).report
    choice = audit_module(Question(f"{leaky}:Loudest", {}, dim=8), length=16).report
    assert [text.partition(":")[0] for text in values.explanations] == ["The mask leaks"]
    assert [text.partition(":")[0] for text in choice.explanations] == ["The selection leaks"]
    assert "% of the earlier positions moved" in choice.explanations[0]
    assert any(note.startswith("padding: not checked") for note in values.notes)


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (Question("leaky_layers", {}, dim=8), "must be package:Class, got leaky_layers"),
        (Question("no_such_package:Layer", {}, dim=8), "no_such_package must be importable"),
        (Question("leaky_layers:Maen", {}, dim=8), "got 'Maen'; nearest: Mean"),
        (Question("leaky_layers:Mean", {"size": 3}, dim=8), "must be made with {'size': 3}"),
        (Question("leaky_layers:no_module", {}, dim=8), "must make an nn.Module, got int"),
        (Question("leaky_layers:Mean", {}), "give --dim for vectors or --vocab for token ids"),
    ],
)
def test_what_cannot_be_audited_is_said(leaky: str, question: Question, words: str) -> None:
    with pytest.raises(MapformersError) as caught:
        audit_module(question)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_table_fits_the_terminal() -> None:
    found = [audit_entry(name, length=8) for name in ("band", "improved_clustered", "alibi")]
    lines = audits.summary(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[1:]] == ["band", "improved_clustered", "alibi"]


def test_the_command_writes_prints_and_says_what_failed(
    leaky: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "audit.json"
    call = ["audit", "--module", f"{leaky}:Mean", "--set", "scale=2.0", "--dim", "8", "--length", "16"]
    assert run([*call, "--output", str(file)]) == 1
    shown = capsys.readouterr().out
    assert "FAILED" in shown
    assert "The mask leaks" in shown
    assert max(map(len, shown.splitlines())) <= 80
    held = read_record(file, "audit")["subjects"][0]
    assert held["built"] == f"{leaky}:Mean(scale=2.0)"
    assert not held["passed"]
    assert run(["audit", "band", "linear", "--length", "8", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [one["subject"] for one in said["subjects"]] == ["band", "linear"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "a NAME must be given"),
        (["bnad"], "nearest: band"),
        (["band", "--dim", "8"], "--dim goes with --module"),
        (["--module", "torch.nn:Identity", "--set", "dim"], "needs key=value"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["audit", *arguments]) == 2
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.err.count("\n") == 1
