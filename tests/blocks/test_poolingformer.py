"""Poolingformer: the second level against explicit cells, and what it becomes without pooling."""

import pytest
import torch
from torch import Tensor, nn

import mapformers as mf
from mapformers.blocks.poolingformer import POOLINGS
from mapformers.core.carry import Carry
from tests.contract import cases
from tests.tolerances import assert_close

N, KERNEL, STRIDE, FAR = 17, 4, 3, 6


def pooled(part: nn.Module, pooling: str, x: Tensor) -> Tensor:
    """One cell out of its tokens x [H, kernel or fewer, D]."""
    if pooling == "max":
        return x.amax(1)
    if pooling == "convolution":
        return sum(x[:, t, None] @ part.taps[:, t] for t in range(x.shape[1]))[:, 0]
    mean = x.mean(1)
    if pooling == "mean":
        return mean
    weights = part.weigh(mean)[:, : x.shape[1]].softmax(-1)
    return (weights.unsqueeze(-1) * x).sum(1)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("causal", [False, True])
def test_the_second_level_reads_explicit_cells(
    pooling: str, causal: bool, generator: torch.Generator
) -> None:
    text = (
        f"poolingformer(window=2, second_window={FAR}, kernel={KERNEL}, stride={STRIDE}, pooling={pooling})"
    )
    block = cases.block(text, generator, causal)
    y = cases.draw((1, N, cases.DIM), generator)
    q, k, v = (x[0] for x in block.project(y, y))
    cells = [range(c, min(c + KERNEL, N)) for c in range(0, N, STRIDE)]
    keys, values = (
        torch.stack([pooled(part, pooling, x[:, list(cell)]) for cell in cells], 1)
        for part, x in ((block.pool_keys, k), (block.pool_values, v))
    )
    heads = torch.zeros_like(q)
    for i in range(N):
        near = [c for c, cell in enumerate(cells) if cell.start + KERNEL - 1 >= i - FAR]
        last = [
            c for c in near if (cells[c].start + KERNEL - 1 <= i if causal else cells[c].start <= i + FAR)
        ]
        if last:
            scores = torch.einsum("hd,hcd->hc", q[:, i], keys[:, last]) / cases.HEAD_DIM**0.5
            heads[:, i] = torch.einsum("hc,hcd->hd", scores.softmax(-1), values[:, last])
    assert_close(block._far(y, None), block.merge(heads[None]), "parity", pooling)


def test_cells_of_one_token_are_a_band(generator: torch.Generator) -> None:
    block = cases.block("poolingformer(second_window=4, kernel=1, stride=1, pooling=mean)", generator, False)
    y = cases.draw((2, N, cases.DIM), generator)
    q, k, v = block.project(y, y)
    band = mf.attend(mf.mechanism("band", window=4), q, k, v)
    assert_close(block._far(y, None), block.merge(band), "parity")


def test_both_levels_are_added(generator: torch.Generator) -> None:
    block = cases.block("poolingformer(window=2, second_window=5)", generator, causal=False)
    x = cases.draw((2, N, cases.DIM), generator)
    y = block.near(block.attention_norm(x))
    x_after = x + y + block._far(y, None)
    expected = x_after + block.feed_forward(block.feed_forward_norm(x_after))
    assert_close(block(x, Carry())[0], expected, "parity")


def test_bad_input() -> None:
    with pytest.raises(mf.MapformersError, match="poolingformer: stride must be 1 or more, got 0"):
        mf.block("poolingformer(stride=0)", 32, 4)
    with pytest.raises(mf.MapformersError, match="poolingformer: pooling"):
        mf.block("poolingformer(pooling=median)", 32, 4)
