"""Plan and kernel equal the dense twin: outputs, and the gradients of q, k, v and of all parameters."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.core.mechanism import Mechanism
from tests.contract import cases
from tests.tolerances import Kind, assert_close

Arguments = dict[str, Tensor]
DIRECTIONS = cases.with_directions()


def twin(mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, causal: bool, scope: Arguments) -> Tensor:
    weights = mf.dense_weights(mechanism, q, k, causal=causal, **scope)
    return weights @ v.repeat_interleave(q.shape[1] // v.shape[1], 1)


def gradients(output: Tensor, inputs: list[Tensor], direction: Tensor) -> list[Tensor]:
    if not output.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    found = torch.autograd.grad((output * direction).sum(), inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]


def assert_parity(text: str, causal: bool, n: int, kind: str, kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(n)
    mechanism = cases.bound(text, generator, kv_heads)
    q, k, v = (x.requires_grad_() for x in cases.draw_qkv(n, generator, kv_heads=kv_heads))
    keys = cases.share(text, q, k)
    scope = cases.scope_arguments(kind, n, generator)
    fast = mf.attend(mechanism, q, keys, v, causal=causal, **scope)
    slow = twin(mechanism, q, keys, v, causal, scope)
    what = f"{text}, causal={causal}, n={n}, {kind}, kv_heads={kv_heads}"
    assert_close(fast, slow, "parity", what)
    if n not in cases.LENGTHS_WITH_GRADIENT:
        return
    inputs = [q, k, v, *mechanism.parameters()]
    direction = torch.randn(fast.shape, generator=generator, dtype=fast.dtype)
    for a, b in zip(gradients(fast, inputs, direction), gradients(slow, inputs, direction), strict=True):
        assert_close(a, b, "gradient", f"gradient of {what}")


@pytest.mark.parametrize(("text", "causal"), DIRECTIONS)
def test_plain_at_every_length(text: str, causal: bool) -> None:
    for n in cases.LENGTHS:
        assert_parity(text, causal, n, "plain", cases.HEADS)


@pytest.mark.parametrize(("text", "causal"), DIRECTIONS)
def test_with_padding_packing_and_positions(text: str, causal: bool) -> None:
    for kind in cases.scope_kinds(text):
        for n in (6, 67):
            assert_parity(text, causal, n, kind, cases.HEADS)


@pytest.mark.parametrize(("text", "causal"), [d for d in DIRECTIONS if "share_qk=true" not in d[0]])
def test_grouped_key_value_heads(text: str, causal: bool) -> None:
    if not cases.supports(text, "grouped"):
        pytest.skip("refuses grouped heads; see test_capabilities.py")
    for kv_heads in (1, 2):
        for kind in ("plain", "packed" if "packed" in cases.scope_kinds(text) else "holes"):
            assert_parity(text, causal, 67, kind, kv_heads)


@pytest.mark.parametrize(("text", "causal"), [d for d in DIRECTIONS if "paper" not in d[0]])
def test_ties_go_the_same_way(text: str, causal: bool) -> None:
    """Duplicates and zero vectors tie between tokens and clusters. (The paper's form ranks tokens.)"""
    for kind in ("duplicated", "zeros"):
        generator = torch.Generator().manual_seed(3)
        mechanism = cases.fresh(text)
        q, k, v = cases.draw_qkv(40, generator, kind)
        k = cases.share(text, q, k)
        fast = mf.attend(mechanism, q, k, v, causal=causal)
        assert_close(fast, twin(mechanism, q, k, v, causal, {}), "parity", f"{text}, {kind}")


@pytest.mark.parametrize("text", cases.with_capability("cross"))
def test_cross_lengths(text: str, generator: torch.Generator) -> None:
    for n, m in ((1, 40), (67, 2), (131, 70)):
        mechanism = cases.bound(text, generator)
        q = cases.draw_qkv(n, generator)[0].requires_grad_()
        k, v = (x.requires_grad_() for x in cases.draw_qkv(m, generator)[1:])
        for scope in ({}, {"key_is_real": cases.mask("left", m, generator)}):
            fast, slow = mf.attend(mechanism, q, k, v, **scope), twin(mechanism, q, k, v, False, scope)
            assert_close(fast, slow, "parity", text)
            direction = torch.randn(fast.shape, generator=generator, dtype=fast.dtype)
            for a, b in zip(
                gradients(fast, [q, k, v], direction), gradients(slow, [q, k, v], direction), strict=True
            ):
                assert_close(a, b, "gradient", text)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("text", "causal"), DIRECTIONS)
def test_narrow_types_keep_to_the_float64_definition(text: str, causal: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    mechanism = cases.bound(text, generator, dtype=torch.float32)
    rounded = [x.to(dtype) for x in cases.draw_qkv(70, generator)]
    narrow = [x.requires_grad_() for x in rounded]
    wide = [x.detach().double().requires_grad_() for x in rounded]
    fast = mf.attend(mechanism, narrow[0], cases.share(text, *narrow[:2]), narrow[2], causal=causal)
    assert fast.dtype == dtype
    slow = twin(deepcopy(mechanism).double(), wide[0], cases.share(text, *wide[:2]), wide[2], causal, {})
    assert_close_in_scale(fast, slow, "parity", text)
    direction = torch.randn(fast.shape, generator=generator, dtype=torch.float64).to(dtype)
    for a, b in zip(
        gradients(fast, narrow, direction), gradients(slow, wide, direction.double()), strict=True
    ):
        assert_close_in_scale(a, b, "gradient", text)


def assert_close_in_scale(fast: Tensor, slow: Tensor, kind: Kind, what: str) -> None:
    """Relative to the largest number: linformer's outputs are no means of values and grow with the length."""
    scale = slow.detach().abs().max().clamp(min=1)
    assert_close(fast.double() / scale, (slow / scale).to(fast.dtype), kind, what)


@pytest.mark.parametrize(("text", "causal"), DIRECTIONS)
def test_rows_sum_to_one_where_promised(text: str, causal: bool, generator: torch.Generator) -> None:
    mechanism = cases.bound(text, generator)
    q, k, _ = cases.draw_qkv(40, generator)
    scope = cases.scope_arguments("holes", 40, generator)
    weights = mf.dense_weights(mechanism, q, cases.share(text, q, k), causal=causal, **scope)
    total = weights.sum(-1)
    if "rows_sum_to_one" in mechanism.card.supports:
        assert (weights >= 0).all()
        empty = (weights == 0).all(-1)
        assert_close(total, torch.where(empty, 0.0, 1.0), "rounding", text)
    elif mechanism.card.name == "routing":  # what is missing lies on the null key
        assert (weights >= 0).all()
        assert (total < 1 + 1e-12).all()
