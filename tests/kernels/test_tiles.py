"""Long ranges run in portions of their tiles: any size of portion is the same attention."""

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.core.plans import Windows
from mapformers.core.scope import Scope
from mapformers.kernels import dense
from mapformers.kernels.ranges import range_attend
from mapformers.kernels.tiles import tiles_of
from mapformers.kernels.windows import ranges_of
from tests.tolerances import assert_close

B, H, N, DIM = 2, 2, 150, 4


def attended(leaves: list[Tensor], causal: bool) -> list[Tensor]:
    """Output, lse and gradients of one in three keys, with a score term and with queries that see nothing."""
    segment = (torch.arange(N) % 3)[None, None]
    plan = Windows(None, 0 if causal else None, segment.masked_fill(segment == 2, -1), segment)
    scope = Scope(causal=causal)
    ranges = ranges_of(plan, scope, N, N, leaves[0].device)
    found = range_attend(ranges, *leaves, scope, mf.score("alibi", H, DIM))
    total = found.output.square().sum() + found.lse[found.lse.isfinite()].sum()
    return [found.output, found.lse, *torch.autograd.grad(total, leaves)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("alive", [1, 2000, 7000])
def test_any_portions_are_the_same(
    alive: int, causal: bool, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves = [
        torch.randn(B, H, N, DIM, generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in range(3)
    ]
    whole = attended(leaves, causal)
    monkeypatch.setattr(dense, "SCORES_ALIVE", alive)
    for a, b in zip(attended(leaves, causal), whole, strict=True):
        assert_close(a, b, "rounding")


def test_portions_hold_every_pair_once() -> None:
    end = torch.tensor([[1, 2, 3, 8, 8, 9, 9, 9, 9, 9], [0, 0, 0, 0, 0, 0, 0, 4, 9, 9]])
    tiles = tiles_of(torch.zeros_like(end), end, 9, 2)
    for most in (1, 3, 5, 100):
        portions = tiles.portions(most)
        assert [rows.start for rows, _ in portions[1:]] == [rows.stop for rows, _ in portions[:-1]]
        assert (portions[0][0].start, portions[-1][0].stop) == (0, 10)
        for name in ("query_block", "key_block"):
            assert torch.equal(torch.cat([getattr(part, name) for _, part in portions]), getattr(tiles, name))
        for rows, part in portions:
            assert ((part.query_block >= rows.start) & (part.query_block < rows.stop)).all()
        assert (len(portions) > 1) == (most < tiles.query_block.numel())
