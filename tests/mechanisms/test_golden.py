"""Numbers do not move unless somebody means it: see golden.py."""

import json

import pytest
import torch

import mapformers as mf
from tests.contract import cases
from tests.mechanisms import golden
from tests.tolerances import assert_close


@pytest.mark.parametrize("text", cases.ALL)
def test_numbers_have_not_moved(text: str) -> None:
    path = golden.path_of(text)
    assert path.exists(), "run: python -m tests.mechanisms.golden"
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert stored["spec"] == text
    assert set(stored["outputs"]) == {("bidirectional", "causal")[c] for c in cases.directions_of(text)}
    q, k, v = (golden.numbers((1, golden.HEADS, golden.N, golden.DIM), 100 * i) for i in range(3))
    for causal in cases.directions_of(text):
        expected = torch.tensor(
            stored["outputs"]["causal" if causal else "bidirectional"], dtype=torch.float64
        )
        assert_close(golden.outputs(text, causal), expected, "rounding", text)
        fast = mf.attend(golden.built(text), q, cases.share(text, q, k), v, causal=causal)[0]
        assert_close(fast, expected, "parity", text)


def test_no_file_is_left_over() -> None:
    assert {p.name for p in golden.FOLDER.iterdir()} == {golden.path_of(text).name for text in cases.ALL}
