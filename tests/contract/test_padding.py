"""Padding is not there: neither its content, nor its amount, nor its side changes anything real."""

import pytest
import torch
from torch import Tensor

import mapformers as mf
from tests.contract import cases
from tests.tolerances import assert_close

N = 67
HUGE = 1e30
PADDED = [(text, causal) for text, causal in cases.with_directions() if cases.supports(text, "padding")]
LAYERS = PADDED + [(text, True) for text in cases.MIXTURES]


def disturbed(x: Tensor, real: Tensor, value: float | Tensor) -> Tensor:
    """x [B, N, dim] with other content at its padding."""
    return torch.where(real.unsqueeze(-1), x, value)


@pytest.mark.parametrize("side", ["left", "right", "holes"])
@pytest.mark.parametrize(("text", "causal"), LAYERS)
def test_content_of_padding_does_not_matter(text: str, causal: bool, side: str) -> None:
    generator = torch.Generator().manual_seed(1)
    layer = cases.layer(text, generator, causal)
    x, real = cases.draw((3, N, cases.DIM), generator), cases.mask(side, N, generator, batch=3)
    expected = layer(x, key_is_real=real)[real]
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    for value in (noise, HUGE * noise, torch.zeros_like(x), torch.full_like(x, -HUGE)):
        actual = layer(disturbed(x, real, value), key_is_real=real)[real]
        assert_close(actual, expected, "rounding", f"{text}, {side}")


@pytest.mark.parametrize(("text", "causal"), LAYERS)
def test_padding_gets_no_gradient_and_gives_none(text: str, causal: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    layer = cases.layer(text, generator, causal)
    real = cases.mask("holes", N, generator)
    x = cases.draw((2, N, cases.DIM), generator)
    gradients = []
    for value in (0.0, HUGE):
        leaf = disturbed(x, real, value).requires_grad_()
        layer.zero_grad()
        layer(leaf, key_is_real=real)[real].square().sum().backward()
        assert leaf.grad is not None
        assert not leaf.grad[~real].any(), f"{text}: padding has a gradient"
        gradients.append([leaf.grad, *(p.grad for p in layer.parameters() if p.grad is not None)])
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, "gradient", text)


@pytest.mark.parametrize("count", [1, 6, 29])
@pytest.mark.parametrize(("text", "causal"), LAYERS)
def test_amount_of_left_padding_does_not_matter(text: str, causal: bool, count: int) -> None:
    generator = torch.Generator().manual_seed(3)
    layer = cases.layer(text, generator, causal)
    x = cases.draw((2, 38, cases.DIM), generator)
    padded = torch.cat([cases.draw((2, count, cases.DIM), generator), x], 1)
    real = torch.arange(38 + count).expand(2, -1) >= count
    assert_close(layer(padded, key_is_real=real)[:, count:], layer(x), "rounding", text)


@pytest.mark.parametrize(("text", "causal"), LAYERS)
def test_right_padding_equals_the_shorter_row(text: str, causal: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    layer = cases.layer(text, generator, causal)
    x, real = cases.draw((2, N, cases.DIM), generator), torch.arange(N).expand(2, -1) < 40
    assert_close(layer(x, key_is_real=real)[:, :40], layer(x[:, :40]), "rounding", text)


@pytest.mark.parametrize(("text", "causal"), PADDED)
def test_a_row_that_sees_nothing_is_zero_with_finite_gradients(text: str, causal: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    mechanism = cases.bound(text, generator)
    for n in (3, N):
        q, k, v = (x.requires_grad_() for x in cases.draw_qkv(n, generator))
        real = torch.ones(2, n, dtype=torch.bool)
        real[1] = False
        y = mf.attend(mechanism, q, cases.share(text, q, k), v, causal=causal, key_is_real=real)
        assert not y[1].any(), f"{text}: a row without keys is not zero"
        y.square().sum().backward()
        for leaf in (q, k, v):
            assert leaf.grad is None or leaf.grad.isfinite().all(), text
            assert leaf.grad is None or not leaf.grad[1].any(), text


@pytest.mark.parametrize(("text", "causal"), PADDED)
def test_huge_padding_in_float32(text: str, causal: bool) -> None:
    generator = torch.Generator().manual_seed(6)
    mechanism = cases.bound(text, generator, dtype=torch.float32)
    q, k, v = (x.float() for x in cases.draw_qkv(N, generator))
    real = cases.mask("left", N, generator)
    rows = real[:, None].expand(-1, cases.HEADS, -1)
    k = cases.share(text, q, k)
    expected = mf.attend(mechanism, q, k, v, causal=causal, key_is_real=real)[rows]
    q, k, v = (torch.where(rows.unsqueeze(-1), x, 1e15) for x in (q, k, v))
    actual = mf.attend(mechanism, q, k, v, causal=causal, key_is_real=real)[rows]
    assert_close(actual, expected, "rounding", text)
