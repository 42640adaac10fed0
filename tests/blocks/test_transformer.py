"""The formulas of the blocks, written out once more."""

import pytest
import torch
import torch.nn.functional as F

import mapformers as mf
from mapformers.core.carry import Carry
from tests.contract import cases
from tests.tolerances import assert_close


def test_pre_and_post_norm(generator: torch.Generator) -> None:
    x = cases.draw((2, 9, cases.DIM), generator)
    for norm in ("pre", "post"):
        block = cases.block(f"transformer(attention='band(window=3)', norm={norm})", generator, causal=True)
        a, f = block.attention_norm, block.feed_forward_norm
        if norm == "pre":
            y = x + block.attention(a(x))
            expected = y + block.feed_forward(f(y))
        else:
            y = a(x + block.attention(x))
            expected = f(y + block.feed_forward(y))
        assert_close(block(x, Carry())[0], expected, "parity", norm)


@pytest.mark.parametrize(
    ("activation", "act"),
    [("gelu", F.gelu), ("relu", F.relu), ("geglu", None)],
    ids=["gelu", "relu", "geglu"],
)
def test_feed_forward(activation: str, act: object, generator: torch.Generator) -> None:
    feed = cases.block(
        f"transformer(activation={activation}, hidden=12)", generator, causal=True
    ).feed_forward
    x = cases.draw((2, 5, cases.DIM), generator)
    inner = F.linear(x, feed.inner.weight, feed.inner.bias)
    inner = act(inner) if act is not None else inner[..., :12] * F.gelu(inner[..., 12:])
    assert_close(feed(x), F.linear(inner, feed.outer.weight, feed.outer.bias), "parity")


def test_losses_travel_in_the_carry(generator: torch.Generator) -> None:
    """Two routing blocks: their commitment losses add up under one name, and no carry is changed."""
    blocks = [
        cases.block("transformer(attention='routing(clusters=4)')", generator, True).train() for _ in range(2)
    ]
    x, first = cases.draw((2, 9, cases.DIM), generator), Carry()
    y, second = blocks[0](x, first)
    _, third = blocks[1](y, second)
    assert first.losses == {}
    alone = blocks[1](y, Carry())[1].losses["commitment"]
    assert_close(third.losses["commitment"], second.losses["commitment"] + alone, "rounding")
    assert blocks[0].eval()(x, Carry())[1].losses == {}


def test_blocks_pass_on_updates_and_telemetry(generator: torch.Generator) -> None:
    block = cases.block("transformer(attention='routing(clusters=4)')", generator, True).train()
    before = block.attention.mechanisms[0].kmeans.centroids.clone()
    block(cases.draw((2, 9, cases.DIM), generator), Carry())
    block.update_centroids()
    assert not torch.equal(block.attention.mechanisms[0].kmeans.centroids, before)
    assert "occupancy_entropy" in block.telemetry()


def test_luna_by_its_formula(generator: torch.Generator) -> None:
    block = cases.block("luna(length=4)", generator, causal=False)
    x = cases.draw((2, 9, cases.DIM), generator)
    p = block.start.expand(2, -1, -1)
    for _ in range(2):  # the second layer starts from the stream of the first
        packed = block.pack(p, context=x)
        y = block.attention_norm(x + block.unpack(x, context=packed))
        z = block.feed_forward_norm(y + block.feed_forward(y))
        got, carry = block(x, Carry(stream=None if p.shape == block.start.shape else p))
        assert_close(got, z, "parity")
        p = block.stream_norm(p + packed)
        assert_close(carry.stream, p, "parity")
        x = z


def test_luna_needs_a_stream(generator: torch.Generator) -> None:
    block = mf.block("luna(length=4, learned_start=false)", cases.DIM, cases.HEADS).double()
    x = cases.draw((2, 9, cases.DIM), generator)
    with pytest.raises(mf.MapformersError, match="luna: stream must come from the layer below"):
        block(x, Carry())
    y, _ = block(x, Carry(stream=x[:, :4]))
    assert y.shape == x.shape


def test_luna_refuses_rotary() -> None:
    with pytest.raises(mf.MapformersError, match="luna: rotary is not supported"):
        mf.block("luna", cases.DIM, cases.HEADS, rotary=True)
