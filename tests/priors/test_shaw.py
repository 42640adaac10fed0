"""Relative position keys, by hand and by distance alone."""

import torch

import mapformers as mf
from mapformers.core.scope import Scope
from mapformers.core.score import Call
from tests.contract.test_product import bias_of
from tests.tolerances import assert_close


def bias(
    term: mf.core.score.ScoreTerm, q: torch.Tensor, positions: torch.Tensor | None = None
) -> torch.Tensor:
    scope = Scope(positions=positions)
    call, _ = term.bind(Call(q, q, q, q, q, (), scope))
    return bias_of(call.bias, scope, (*q.shape[:3], q.shape[2]))


def test_by_hand() -> None:
    """Four tokens, limit 1: what the query says of before, itself and behind."""
    term = mf.score("shaw(limit=1)", 1, 2).double()
    with torch.no_grad():
        term.table.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0]]))
    q = torch.tensor([[1.0, 2.0], [0.0, 1.0], [3.0, 0.0], [1.0, -1.0]], dtype=torch.float64)[None, None]
    before, itself, behind = q[0, 0] @ term.table.T.unbind(1)[0], q[0, 0, :, 1], q[0, 0, :, 1] - q[0, 0, :, 0]
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            expected[i, j] = before[i] if j < i else behind[i] if j > i else itself[i]
    assert_close(bias(term, q)[0, 0], expected / 2**0.5, "rounding")


def test_only_the_distance_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    term = mf.score("shaw(limit=3)", 2, 4).double()
    q = torch.randn(1, 2, 9, 4, generator=generator, dtype=torch.float64)
    positions = torch.arange(9)[None]
    assert_close(bias(term, q, positions + 100), bias(term, q, positions), "rounding")


def test_a_table_of_zeros_is_plain_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    term = mf.score("shaw", 2, 4).double()
    with torch.no_grad():
        term.table.zero_()
    q, k, v = torch.randn(3, 1, 2, 9, 4, generator=generator, dtype=torch.float64)
    band = mf.mechanism("band", window=4)
    assert_close(mf.attend(band, q, k, v, score=term), mf.attend(band, q, k, v), "rounding")
