"""Localness: the Gaussian from its formula, its limits, and what counts as the length."""

import math

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.core.scope import Scope
from mapformers.core.score import Call
from mapformers.priors.localness import Localness
from tests.contract.test_product import bias_of
from tests.tolerances import assert_close

N, HEADS, DIM = 11, 2, 4


def made(text: str, causal: bool = False) -> Localness:
    term = mf.score(text, HEADS, DIM, causal=causal).double()
    assert isinstance(term, Localness)
    return term


def drawn() -> Tensor:
    return torch.randn(3, 1, HEADS, N, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def bias(term: Localness, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
    call, _ = term.bind(Call(q, k, q, k, k, (), scope))
    return bias_of(call.bias, scope, (*q.shape[:3], q.shape[2]))


def by_the_formula(term: Localness, q: Tensor, k: Tensor, causal: bool) -> Tensor:
    """One number after another."""
    expected = torch.zeros(1, HEADS, N, N, dtype=torch.float64)
    assert term.to_width is not None
    for h in range(HEADS):
        for i in range(N):
            seen = i + 1 if causal else N
            hidden = torch.tanh(term.hidden.weight @ q[0, h, i])
            centre = seen * torch.sigmoid(term.to_centre[h] @ hidden)
            if term.hidden_keys is not None:
                hidden = torch.tanh(term.hidden_keys.weight @ k[0, h, :seen].mean(0))
            width = seen * torch.sigmoid(term.to_width[h] @ hidden)
            deviation = max(float(width.detach()), seen / 100) / 2
            for j in range(N):
                expected[0, h, i, j] = -((j - float(centre.detach())) ** 2) / (2 * deviation**2)
    return expected.clamp(min=-1e4)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", ["query", "layer"])
def test_it_is_the_formula(window: str, causal: bool) -> None:
    term, (q, k, _) = made(f"localness(window={window})", causal), drawn()
    actual = bias(term, q, k, Scope(causal=causal))
    assert_close(actual, by_the_formula(term, q, k, causal), "rounding", window)


def test_a_wide_window_is_plain_attention() -> None:
    q, k, v = drawn()
    wide = mf.attend(mf.mechanism("full"), q, k, v, score=made("localness(window=fixed, size=100000000)"))
    assert_close(wide, mf.attend(mf.mechanism("full"), q, k, v), "rounding")


def test_an_offset_of_nothing_is_a_gaussian_around_the_query() -> None:
    """With centre=offset and zero weights P_i = i; size 10 is a deviation of 5."""
    term, (q, k, _) = made("localness(window=fixed, centre=offset)"), drawn()
    with torch.no_grad():
        term.to_centre.zero_()
    away = torch.arange(N)[:, None] - torch.arange(N)[None]
    expected = (-(away.double() ** 2) / 50).expand(1, HEADS, N, N)
    assert_close(bias(term, q, k, Scope()), expected, "rounding")


def test_centre_and_width_learn() -> None:
    q, k, v = drawn()
    term = made("localness")
    mf.attend(mf.mechanism("band", window=3), q, k, v, score=term).square().sum().backward()
    for name, parameter in term.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_neither_padding_nor_documents_count_into_the_length() -> None:
    """A document alone has the bias that it has in a row with others and with padding."""
    term = made("localness(window=layer)")
    q, k, _ = drawn()
    real = torch.tensor([[True] * 7 + [False] * 4])
    segments = torch.tensor([[0] * 3 + [1] * 8])
    packed = bias(term, q, k, Scope.of(False, real, segments))
    alone = bias(term, q[:, :, 3:7], k[:, :, 3:7], Scope.of(False))
    assert_close(packed[:, :, 3:7, 3:7], alone, "rounding")


def test_half_types_stay_finite() -> None:
    q, k, v = drawn().to(torch.bfloat16)
    term = mf.score("localness(window=fixed, size=1)", HEADS, DIM)
    out = mf.attend(mf.mechanism("full"), q, k, v, score=term)
    assert out.isfinite().all()
    assert math.isfinite(float(out.detach().float().sum()))
