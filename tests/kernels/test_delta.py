"""The chunks of the delta rule: across stretches, from step to step, with groups of queries, in documents."""

import pytest
import torch
from torch import Tensor

from mapformers.core.errors import MapformersError
from mapformers.core.plans import DeltaRule, Union, Windows
from mapformers.core.scope import Scope
from mapformers.kernels import delta as kernel
from mapformers.kernels.delta import delta_attend, delta_rule
from mapformers.kernels.run import run
from mapformers.kernels.scan import STRETCH
from mapformers.kernels.scan_tile import CHUNK
from tests.tolerances import assert_close


def draw(n: int, heads: int = 2, kv_heads: int = 2, batch: int = 1) -> tuple[Tensor, ...]:
    """phi_q, phi_k, beta, v and the matrix before, with features that sum to one as the mechanism's do."""
    generator = torch.Generator().manual_seed(n)
    phi_q = torch.rand(batch, heads, n, 6, generator=generator, dtype=torch.float64)
    phi_k = torch.rand(batch, kv_heads, n, 6, generator=generator, dtype=torch.float64)
    beta = torch.rand(batch, kv_heads, n, generator=generator, dtype=torch.float64)
    v = torch.randn(batch, kv_heads, n, 3, generator=generator, dtype=torch.float64)
    before = torch.randn(batch, kv_heads, 6, 3, generator=generator, dtype=torch.float64)
    found = (phi_q / phi_q.sum(-1, True), phi_k / phi_k.sum(-1, True), beta, v, before)
    return tuple(x.requires_grad_() for x in found)


def one_by_one(phi_q: Tensor, phi_k: Tensor, beta: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence, for as many key/value heads as heads."""
    outputs = []
    for i in range(phi_q.shape[2]):
        error = v[:, :, i] - (phi_k[:, :, i, None] @ w).squeeze(2)
        w = w + phi_k[:, :, i, :, None] * (beta[:, :, i, None] * error)[:, :, None]
        outputs.append((phi_q[:, :, i, None] @ w).squeeze(2))
    return torch.stack(outputs, 2), w


@pytest.mark.parametrize("n", [1, CHUNK - 1, CHUNK, CHUNK + 1, STRETCH + 70])
def test_chunks_and_stretches_are_the_recurrence(n: int) -> None:
    """With the gradients of everything, what comes before and goes on included."""
    inputs = draw(n)
    (y, after), (expected, expected_after) = delta_rule(*inputs), one_by_one(*inputs)
    assert_close(y, expected, "rounding")
    assert_close(after, expected_after, "rounding")
    loss, other = (
        found.square().sum() + last.sum() for found, last in ((y, after), (expected, expected_after))
    )
    for ours, theirs in zip(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(other, inputs), strict=True
    ):
        assert_close(ours, theirs, "gradient")


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_the_size_of_tiles_changes_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = draw(200, 5, 5)
    expected = one_by_one(*inputs)[0]
    monkeypatch.setattr(kernel, "ROWS", rows)
    monkeypatch.setattr(kernel, "STRETCH", CHUNK)
    y = delta_rule(*inputs)[0]
    assert_close(y, expected, "rounding")
    for ours, theirs in zip(
        torch.autograd.grad(y.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        assert_close(ours, theirs, "gradient")


def test_steps_of_any_size_go_on_where_the_last_ended() -> None:
    *inputs, before = (x.detach() for x in draw(CHUNK + 30))
    whole, after = delta_rule(*inputs, before)
    parts, carried = [], before
    for start, end in ((0, 1), (1, 2), (2, CHUNK + 5), (CHUNK + 5, CHUNK + 30)):
        y, carried = delta_rule(*(x[:, :, start:end] for x in inputs), carried)
        parts.append(y)
    assert_close(torch.cat(parts, 2), whole, "decode")
    assert_close(carried, after, "decode")


def test_queries_of_one_key_head_read_one_matrix() -> None:
    phi_q, *keys = draw(90, 6, 2, 2)
    grouped, _ = delta_rule(phi_q, *keys)
    repeated, _ = one_by_one(phi_q, *(x.repeat_interleave(3, 1) for x in keys))
    assert_close(grouped, repeated, "rounding")
    inputs = (phi_q, *keys)
    for ours, theirs in zip(
        torch.autograd.grad(grouped.square().sum(), inputs),
        torch.autograd.grad(repeated.square().sum(), inputs),
        strict=True,
    ):
        assert_close(ours, theirs, "gradient")


def test_documents_need_not_lie_together() -> None:
    phi_q, phi_k, beta, v, _ = (x.detach() for x in draw(20, batch=2))
    segments = torch.stack([torch.arange(20) % 3, torch.arange(20) // 11])
    output = delta_attend(DeltaRule(phi_q, phi_k, beta), v, Scope(causal=True, segments=segments)).output
    for b in range(2):
        for name in segments[b].unique():
            own = segments[b] == name
            alone, _ = delta_rule(*(x[b : b + 1, :, own] for x in (phi_q, phi_k, beta, v)))
            assert_close(output[b : b + 1, :, own], alone, "rounding")


def test_padding_corrects_nothing() -> None:
    phi_q, phi_k, beta, v, _ = (x.detach() for x in draw(20))
    real = torch.arange(20)[None] % 4 != 1
    output = delta_attend(DeltaRule(phi_q, phi_k, beta), v, Scope(causal=True, key_is_real=real)).output
    alone, _ = delta_rule(*(x[:, :, real[0]] for x in (phi_q, phi_k, beta, v)))
    assert_close(output[:, :, real[0]], alone, "rounding")


def test_sums_are_not_those_of_a_half_type() -> None:
    inputs = [x.detach().bfloat16() for x in draw(300)[:4]]
    wide = [x.double() for x in inputs]
    before = torch.zeros(1, 2, 6, 3, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        y, after = delta_rule(*inputs)
    assert y.dtype == after.dtype == torch.float32
    assert_close(y, one_by_one(*wide, before)[0], "parity")


def test_what_has_no_order_is_refused() -> None:
    phi_q, phi_k, beta, v, _ = draw(5)
    with pytest.raises(
        MapformersError, match="needs causal=True and as many keys as queries, got causal=False"
    ):
        delta_attend(DeltaRule(phi_q, phi_k, beta), v, Scope())
    with pytest.raises(MapformersError, match="4 queries and 5 keys"):
        delta_attend(DeltaRule(phi_q[:, :, :4], phi_k, beta), v, Scope(causal=True))
    union = Union((Windows(before=2), DeltaRule(phi_q, phi_k, beta)))
    with pytest.raises(MapformersError, match="union: a part must have a log-sum-exp"):
        run(union, phi_q, phi_k, v, Scope(causal=True))
    assert run(DeltaRule(phi_q, phi_k, beta), phi_q, phi_k, v, Scope(causal=True)).lse.isnan().all()
