"""Luna: both forms against their formulas, token by token."""

import math

import torch
import torch.nn.functional as F

from mapformers.core.carry import Carry
from mapformers.kernels.scan import STRETCH, causal_sums
from tests.contract import cases
from tests.models.tiny import model_of, tokens
from tests.tolerances import assert_close


def test_the_causal_form_is_a_loop_over_tokens(generator: torch.Generator) -> None:
    """Row 1 begins with padding, which counts nowhere."""
    block = cases.block("luna(length=3)", generator, causal=True)
    running, n = block.running, 11
    x = cases.draw((2, n, cases.DIM), generator)
    real = torch.ones(2, n, dtype=torch.bool)
    real[1, :4] = False
    read, _ = running(x, block.start.expand(2, -1, -1), real, running.empty(2, 3))
    q, k, v = running.project(x, x)
    p = running.stream_query(block.start).view(3, cases.HEADS, cases.HEAD_DIM).transpose(0, 1)  # [H, l, D]
    for row in range(2):
        keys, values = 0.0, 0.0
        for count, t in enumerate(real[row].nonzero()[:, 0].tolist(), 1):
            weight = F.softplus((p @ k[row, :, t, :, None])[..., 0] / cases.HEAD_DIM**0.5, beta=math.log(2))
            keys = keys + k[row, :, t, :, None] * weight[:, None]  # [H, D, l]
            values = values + weight[..., None] * v[row, :, t, None]  # [H, l, D]
            chosen = (q[row, :, t, None] @ keys / count).softmax(-1)  # [H, 1, l]
            heads = (chosen @ values / count).flatten()
            expected = running.merge(heads.view(1, cases.HEADS, 1, cases.HEAD_DIM))[0, 0]
            assert_close(read[row, t], expected, "parity", f"row {row}, token {t}")


def test_the_second_stream_stays_as_it_is_when_causal(generator: torch.Generator) -> None:
    block = cases.block("luna(length=3)", generator, causal=True)
    x, stream = cases.draw((2, 7, cases.DIM), generator), cases.draw((2, 3, cases.DIM), generator)
    assert torch.equal(block(x, Carry(stream=stream))[1].stream, stream)
    assert not torch.equal(block(x, Carry(stream=stream))[0], block(x, Carry())[0])


def test_the_bidirectional_form_is_two_attentions(generator: torch.Generator) -> None:
    block = cases.block("luna(length=3)", generator, causal=False)
    x = cases.draw((2, 7, cases.DIM), generator)
    start = block.start.expand(2, -1, -1)
    packed = block.pack(start, context=x)
    y = block.attention_norm(x + block.unpack(x, context=packed))
    found, carry = block(x, Carry())
    assert_close(found, block.feed_forward_norm(y + block.feed_forward(y)), "parity")
    assert_close(carry.stream, block.stream_norm(start + packed), "parity")


def test_causal_sums_over_several_stretches(generator: torch.Generator) -> None:
    n = STRETCH + 70
    a, b = (torch.randn(1, 2, n, 3, generator=generator, dtype=torch.float64) for _ in "ab")
    values = torch.randn(1, 2, n, 2, generator=generator, dtype=torch.float64)
    carried = torch.randn(1, 2, 3, 2, generator=generator, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (a, b, values, carried)]
    y, sums = causal_sums(a, b, values, carried)
    outer = carried.unsqueeze(2) + (b.unsqueeze(-1) * values.unsqueeze(-2)).cumsum(2)  # [1, 2, n, 3, 2]
    expected = (a.unsqueeze(-2) @ outer).squeeze(-2)
    assert_close(y, expected, "parity")
    assert_close(sums, outer[:, :, -1], "parity")
    fast = torch.autograd.grad(y.square().sum(), leaves)
    slow = torch.autograd.grad(expected.square().sum(), leaves)
    for one, other in zip(fast, slow, strict=True):
        assert_close(one, other, "gradient")


def test_a_causal_model_of_luna_decodes_like_its_forward() -> None:
    layer = {"block": "luna(length=3)", "rotary": False}
    model, ids = model_of([layer, layer]).double(), tokens(2, 13)
    with torch.no_grad():
        expected, cache, found = model(ids).logits, None, []
        for i in range(13):
            out = model(ids[:, i : i + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            found.append(out.logits)
    assert_close(torch.cat(found, 1), expected, "decode")
