"""Set Transformer: the formulas of both variants, and that order does not matter."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mapformers as mf
from mapformers.blocks.base import Site
from mapformers.blocks.set_attention import VARIANTS, SetPooling
from mapformers.build import attention
from mapformers.core.carry import Carry
from tests.contract import cases
from tests.tolerances import assert_close

N = 9


def site(generator: torch.Generator) -> Site:
    def attend(text: str) -> torch.nn.Module:
        return attention(text, cases.DIM, cases.HEADS, seed=generator)

    return Site(cases.DIM, cases.HEADS, causal=False, rotary=False, generator=generator, attention=attend)


def pooling(variant: str, seeds: int, generator: torch.Generator) -> SetPooling:
    made = SetPooling(site(generator), seeds, variant=variant).double()
    cases.stir(made, generator)
    return made


def by_torch(attend: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The multi-head attention of torch with the same weights."""
    twin = torch.nn.MultiheadAttention(cases.DIM, cases.HEADS, bias=False, batch_first=True).double()
    project = attend.project
    weights = [getattr(project, name).weight for name in ("query", "key", "value")]
    with torch.no_grad():
        twin.in_proj_weight.copy_(torch.cat(weights))
        twin.out_proj.weight.copy_(attend.merge.output.weight)
    return twin(x, y, y, need_weights=False)[0]


def test_paper_variant(generator: torch.Generator) -> None:
    block = cases.block("induced_set(points=3)", generator, causal=False)
    x = cases.draw((2, N, cases.DIM), generator)

    def mab(part: torch.nn.Module, a: Tensor, b: Tensor) -> Tensor:
        h = part.attention_norm(a + by_torch(part.attention, a, b))
        return part.feed_forward_norm(h + part.feed_forward(h))

    points = block.points.expand(2, -1, -1)
    assert_close(block(x, Carry())[0], mab(block.read, x, mab(block.gather, points, x)), "parity")


def test_official_variant(generator: torch.Generator) -> None:
    block = cases.block("induced_set(points=0, variant=official)", generator, causal=False)
    x = cases.draw((2, N, cases.DIM), generator)
    q, k, v = block.read.project(x, x)
    o = (q + (q @ k.transpose(-1, -2) / cases.DIM**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
    assert_close(block(x, Carry())[0], o + F.relu(block.read.feed_forward(o)), "parity")


@pytest.mark.parametrize("text", cases.BLOCKS["induced_set"])
def test_elements_may_change_places(text: str, generator: torch.Generator) -> None:
    block = cases.block(text, generator, causal=False)
    x, order = cases.draw((2, N, cases.DIM), generator), torch.randperm(N, generator=generator)
    assert_close(block(x[:, order], Carry())[0], block(x, Carry())[0][:, order], "rounding")


@pytest.mark.parametrize("variant", VARIANTS)
def test_pooling_does_not_see_the_order_nor_padding(variant: str, generator: torch.Generator) -> None:
    made = pooling(variant, 2, generator)
    z, order = cases.draw((2, N, cases.DIM), generator), torch.randperm(N, generator=generator)
    expected = made(z)
    assert expected.shape == (2, 2, cases.DIM)
    assert_close(made(z[:, order]), expected, "rounding")
    padded = torch.cat([z, 1e3 * cases.draw((2, 3, cases.DIM), generator)], 1)
    real = (torch.arange(N + 3) < N).expand(2, -1)
    assert_close(made(padded, real), expected, "rounding")


def test_bad_input(generator: torch.Generator) -> None:
    with pytest.raises(mf.MapformersError, match="induced_set: causal is not supported"):
        mf.block("induced_set", 32, 4, causal=True)
    with pytest.raises(mf.MapformersError, match="induced_set: points must be 0 or more, got -1"):
        mf.block("induced_set(points=-1)", 32, 4)
    with pytest.raises(mf.MapformersError, match="set_pooling: seeds must be 1 or more, got 0"):
        SetPooling(site(generator), 0)
