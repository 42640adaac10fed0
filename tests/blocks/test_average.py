"""The average block against softmax of equal scores, its gate by hand, and its state."""

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.blocks.average import AverageBlock
from mapformers.core.carry import Carry
from mapformers.core.errors import MapformersError
from tests.tolerances import assert_close

DIM, N = 8, 11


def made(options: str = "") -> AverageBlock:
    block = mf.block(f"average({options})", DIM, 2, causal=True).double()
    assert isinstance(block, AverageBlock)
    return block


def drawn() -> Tensor:
    return torch.randn(2, N, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("feed", ["true", "false"])
def test_it_is_the_formula(feed: str, norm: str) -> None:
    """The mean is causal attention with equal scores."""
    block, x = made(f"feed={feed}, norm={norm}"), drawn()
    y = block.average_norm(x) if norm == "pre" else x
    hidden = torch.ones(N, N, dtype=torch.bool).triu(1)
    weights = torch.softmax(torch.zeros(N, N, dtype=torch.float64).masked_fill(hidden, float("-inf")), -1)
    mean = weights @ y
    mean = mean if block.feed is None else block.feed(mean)
    gates = torch.sigmoid(torch.cat([y, mean], -1) @ block.gate.weight.T + block.gate.bias)
    h = x + gates[..., :DIM] * y + gates[..., DIM:] * mean
    if norm == "pre":
        expected = h + block.feed_forward(block.feed_forward_norm(h))
    else:
        h = block.average_norm(h)
        expected = block.feed_forward_norm(h + block.feed_forward(h))
    assert_close(block(x, Carry())[0], expected, "rounding")


def test_its_state_has_one_size() -> None:
    block, x = made(), drawn()
    state = block.init_state(2)
    for t in range(N):
        y, _, state = block.step(x[:, t : t + 1], Carry(), state)
        assert state.total is not None
        assert state.total.numel() == 2 * DIM
    assert_close(y, block(x, Carry())[0][:, -1:], "decode")


def test_it_refuses_what_it_is_not_for() -> None:
    with pytest.raises(MapformersError, match="average: needs causal=True"):
        mf.block("average", DIM, 2)
    with pytest.raises(MapformersError, match="average: rotary is not supported"):
        mf.block("average", DIM, 2, causal=True, rotary=True)
