"""A row does not know its batch mates: alone and beside extreme ones it is the same, to rounding."""

import pytest
import torch
from torch import Tensor

import mapformers as mf
from tests.contract import cases
from tests.tolerances import assert_close

N = 41
EXTREMES = [
    pytest.param(1e4, id="large"),
    pytest.param(1e-8, id="tiny", marks=pytest.mark.slow),
    pytest.param(0.0, id="nothing", marks=pytest.mark.slow),
]


def beside(row: Tensor, size: float, generator: torch.Generator) -> Tensor:
    """[1, H, N, D] to [3, H, N, D], the row between two of that size."""
    mates = size * torch.randn((2, *row.shape[1:]), generator=generator, dtype=row.dtype)
    return torch.cat([mates[:1], row, mates[1:]])


@pytest.mark.parametrize("size", EXTREMES)
@pytest.mark.parametrize(("text", "causal"), cases.with_directions())
def test_a_row_is_the_same_alone_and_beside_extreme_ones(text: str, causal: bool, size: float) -> None:
    generator = torch.Generator().manual_seed(7)
    mechanism = cases.bound(text, generator)
    row = cases.draw_qkv(N, generator, batch=1)
    alone = mf.attend(mechanism, row[0], cases.share(text, *row[:2]), row[2], causal=causal)
    q, k, v = (beside(x, size, generator) for x in row)
    together = mf.attend(mechanism, q, cases.share(text, q, k), v, causal=causal)
    assert_close(together[1:2], alone, "rounding", text)
