"""Causal means causal: later tokens change no earlier output, neither by value nor by selection."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import mapformers as mf
from tests.contract import cases
from tests.tolerances import assert_close

N = 70  # several tiles
CUTS = (1, 33, N - 1)
KINDS = ("random", "clustered", "duplicated", "zeros")
STRICT = cases.with_capability("causal")
LAYERS = [*STRICT, *cases.MIXTURES]


def louder(x: Tensor, cut: int, generator: torch.Generator) -> Tensor:
    """Fifty times the tokens of the past, in another order: they win every competition for a place."""
    order = torch.randint(0, cut, (x.shape[-2] - cut,), generator=generator)
    return 50 * x[..., order, :]


def other(x: Tensor, cut: int, generator: torch.Generator) -> Tensor:
    return torch.randn(x[..., cut:, :].shape, generator=generator, dtype=x.dtype)


def copies(x: Tensor, cut: int, generator: torch.Generator) -> Tensor:
    """The token before the cut, again and again."""
    return x[..., cut - 1 : cut, :].expand_as(x[..., cut:, :])


def opposite(x: Tensor, cut: int, generator: torch.Generator) -> Tensor:
    return -1e3 * x[..., cut:, :]


CHANGES: tuple[Callable[[Tensor, int, torch.Generator], Tensor], ...] = (other, louder, opposite, copies)


def with_future(x: Tensor, cut: int, change: Callable, generator: torch.Generator) -> Tensor:
    return torch.cat([x[..., :cut, :], change(x, cut, generator)], -2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", STRICT)
def test_attend_ignores_the_future(text: str, kind: str) -> None:
    generator = torch.Generator().manual_seed(7)
    mechanism = cases.bound(text, generator)
    q, k, v = cases.draw_qkv(N, generator, kind)
    before = mf.attend(mechanism, q, cases.share(text, q, k), v, causal=True)
    for cut in CUTS:
        for change in CHANGES:
            a, b, c = (with_future(x, cut, change, generator) for x in (q, k, v))
            after = mf.attend(mechanism, a, cases.share(text, a, b), c, causal=True)
            what = f"{text}, {kind}, {change.__name__} from {cut}"
            assert_close(after[:, :, :cut], before[:, :, :cut], "rounding", what)


@pytest.mark.parametrize("text", LAYERS)
def test_layers_ignore_the_future(text: str) -> None:
    generator = torch.Generator().manual_seed(8)
    layer = cases.layer(text, generator, causal=True)
    for kind in KINDS:
        x = cases.draw((2, N, cases.DIM), generator, kind)
        before = layer(x)
        for place, change in enumerate(CHANGES):
            cut = (33, N - 1)[place % 2]
            after = layer(with_future(x, cut, change, generator))
            what = f"{text}, {kind}, {change.__name__} from {cut}"
            assert_close(after[:, :cut], before[:, :cut], "rounding", what)


@pytest.mark.parametrize("kind", ["random", "duplicated"])
@pytest.mark.parametrize("text", LAYERS)
def test_no_gradient_reaches_the_future(text: str, kind: str) -> None:
    generator = torch.Generator().manual_seed(9)
    layer = cases.layer(text, generator, causal=True)
    x = cases.draw((1, N, cases.DIM), generator, kind).requires_grad_()
    y = layer(x)
    for i in (0, 31, 64):
        (gradient,) = torch.autograd.grad(y[:, i].sum(), x, retain_graph=True)
        assert not gradient[:, i + 1 :].any(), f"{text}: output {i} depends on a later input"
        assert gradient[:, i].any() or not y[:, i].any()  # a row that sees nothing is zero


@pytest.mark.parametrize("text", STRICT)
def test_the_future_is_hidden_with_padding_and_documents_too(text: str) -> None:
    generator = torch.Generator().manual_seed(10)
    mechanism = cases.bound(text, generator)
    q, k, v = cases.draw_qkv(N, generator, "clustered")
    for kind in cases.scope_kinds(text):
        scope = cases.scope_arguments(kind, N, generator)
        before = mf.attend(mechanism, q, cases.share(text, q, k), v, causal=True, **scope)
        a, b, c = (with_future(x, 40, louder, generator) for x in (q, k, v))
        after = mf.attend(mechanism, a, cases.share(text, a, b), c, causal=True, **scope)
        assert_close(after[:, :, :40], before[:, :, :40], "rounding", f"{text}, {kind}")


@pytest.mark.parametrize("text", cases.with_capability("causal", "score"))
def test_score_terms_keep_the_future_hidden(text: str, generator: torch.Generator) -> None:
    layer = cases.layer(text, generator, causal=True, score="alibi")
    x = cases.draw((1, N, cases.DIM), generator)
    after = layer(with_future(x, 40, louder, generator))
    assert_close(after[:, :40], layer(x)[:, :40], "rounding", text)


def test_the_twin_of_causal_attention_is_a_triangle() -> None:
    for text in STRICT:
        generator = torch.Generator().manual_seed(11)
        q, k, _ = cases.draw_qkv(40, generator)
        weights = mf.dense_weights(cases.bound(text, generator), q, cases.share(text, q, k), causal=True)
        assert not weights.triu(1).any(), text


def test_the_published_form_leaks_and_says_so() -> None:
    """The test above has teeth: top-w membership moves earlier outputs when only the last token changes."""
    text = "routing(clusters=4, window=6, membership=paper, allow_selection_leak=true)"
    generator = torch.Generator().manual_seed(12)
    with pytest.warns(UserWarning, match="allow_selection_leak"):
        mechanism = cases.bound(text, generator)
    q, k, v = cases.draw_qkv(N, generator)
    before = mf.attend(mechanism, q, k, v, causal=True)
    a, b = (with_future(x, N - 1, louder, generator) for x in (q, k))
    after = mf.attend(mechanism, a, b, v, causal=True)
    moved = (after - before)[:, :, : N - 1].abs().amax(dim=(0, 1, 3)) > 1e-6
    assert moved.any()
