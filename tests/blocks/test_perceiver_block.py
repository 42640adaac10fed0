"""The perceiver block by its formula, and what it refuses."""

import pytest
import torch

import mapformers as mf
from mapformers.core.carry import Carry
from tests.contract import cases
from tests.tolerances import assert_close


def test_by_its_formula(generator: torch.Generator) -> None:
    block = cases.block("perceiver(latents=4, depth=2)", generator, causal=False)
    x = cases.draw((2, 9, cases.DIM), generator)
    z, start = block.start.expand(2, -1, -1), None
    for _ in range(2):  # the second layer goes on with the latents of the first
        got, carry = block(x, Carry(stream=start))
        z = z + block.read(block.read_norm(z), context=block.source_norm(x))
        z = z + block.feed_latents(block.latent_norm(z))
        for inner in block.blocks:
            z = z + inner.attention(inner.attention_norm(z))
            z = z + inner.feed_forward(inner.feed_forward_norm(z))
        x = x + block.write(block.write_norm(x), context=block.stream_norm(z))
        x = x + block.feed_forward(block.feed_norm(x))
        assert_close(got, x, "parity")
        assert_close(carry.stream, z, "parity")
        start = carry.stream


def test_the_order_of_the_sequence_does_not_matter(generator: torch.Generator) -> None:
    block = cases.block("perceiver(latents=4)", generator, causal=False)
    x = cases.draw((2, 9, cases.DIM), generator)
    order = torch.randperm(9, generator=generator)
    assert_close(block(x[:, order], Carry())[0], block(x, Carry())[0][:, order], "parity")


def test_what_it_refuses(generator: torch.Generator) -> None:
    for options, rule in (({"causal": True}, "causal is not supported"), ({"rotary": True}, "rotary is not")):
        with pytest.raises(mf.MapformersError, match=rule):
            mf.block("perceiver", cases.DIM, cases.HEADS, **options)
    block = mf.block("perceiver(learned_start=false)", cases.DIM, cases.HEADS).double()
    x = cases.draw((2, 9, cases.DIM), generator)
    with pytest.raises(mf.MapformersError, match="stream must come from the layer below"):
        block(x, Carry())
    with pytest.raises(mf.MapformersError, match="segments are not supported"):
        block(x, Carry(segments=torch.zeros(2, 9, dtype=torch.long)))
