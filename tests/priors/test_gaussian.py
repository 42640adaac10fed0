"""The Gaussian Transformer's prior: by hand, its neighbours (plain, fixed window), its signs."""

import pytest
import torch

import mapformers as mf
from mapformers.core.scope import Scope
from mapformers.core.score import Call
from tests.contract.test_product import bias_of
from tests.priors.distances import by_softmax, decodes_as_forward, drawn, matrix
from tests.tolerances import assert_close


def test_by_hand() -> None:
    """w = 0.5, b = -1: at the distances 0, 1, 2, 3 the scores lose 1, 0.5, 1, 3.5."""
    term = mf.score("gaussian(weight=0.5, penalty=1.0)", 2, 8).double()
    lost = torch.tensor([1.0, 0.5, 1.0, 3.5], dtype=torch.float32)
    found = matrix(term, 2, torch.arange(4))
    for i in range(4):
        for j in range(4):
            assert_close(-found[0, 1, i, j].float(), lost[abs(i - j)], "rounding")


def test_only_the_distance_counts() -> None:
    term = mf.score("gaussian", 3, 8)
    positions = torch.tensor([0, 3, 4, 40, 41, 300])
    assert torch.equal(matrix(term, 3, positions + 1000), matrix(term, 3, positions))


@pytest.mark.parametrize("causal", [True, False])
def test_without_weight_and_penalty_it_is_plain_attention(causal: bool, generator: torch.Generator) -> None:
    term = mf.score("gaussian", 2, 8).double()
    with torch.no_grad():
        term.raw_weight.fill_(-200.0)  # e^-200
        term.raw_penalty.fill_(-200.0)
    q, k, v = drawn(2, 31, generator)
    found = mf.attend(mf.mechanism("full"), q, k, v, causal=causal, score=term)
    assert_close(found, by_softmax(q, k, v, torch.zeros(()), causal), "parity")


def test_without_penalty_it_is_localness_around_the_query() -> None:
    """w = 1 / (2 s^2): the fixed window of 10 tokens has s = 5."""
    term = mf.score("gaussian(weight=0.02)", 2, 4).double()
    local = mf.score("localness(window=fixed, size=10, centre=offset)", 2, 4).double()
    with torch.no_grad():
        term.raw_penalty.fill_(-200.0)
        term.raw_weight.copy_(torch.log(torch.expm1(torch.full((2,), 0.02, dtype=torch.float64))))
        local.to_centre.zero_()  # half of the way from -I to I: the query itself
    q = torch.ones(1, 2, 12, 4, dtype=torch.float64)
    call, _ = local.bind(Call(q, q, q, q, q, (), Scope()))
    expected = bias_of(call.bias, Scope(), (1, 2, 12, 12))
    assert_close(matrix(term, 2, torch.arange(12)), expected, "parity")


def test_signs_stay_and_both_learn(generator: torch.Generator) -> None:
    """Whatever the parameters become, no score is raised; one head learns apart from the other."""
    term = mf.score("gaussian", 2, 8).double()
    found = matrix(term, 2, torch.arange(6))
    found[:, 0].sum().backward()
    for parameter in (term.raw_weight, term.raw_penalty):
        assert parameter.grad[0] != 0
        assert parameter.grad[1] == 0
        with torch.no_grad():
            parameter.add_(5 * torch.randn(2, generator=generator, dtype=torch.float64))
    assert bool((matrix(term, 2, torch.arange(300)) <= 0).all())


def test_decode(generator: torch.Generator) -> None:
    step, whole = decodes_as_forward("band(window=9)", "gaussian(weight=0.1)", generator)
    assert_close(step, whole, "decode")


@pytest.mark.parametrize("options", ["weight=0.0", "penalty=-1.0", "weight=1e999"])
def test_bad_options_are_refused(options: str) -> None:
    with pytest.raises(mf.MapformersError, match=r"gaussian: .*; use"):
        mf.score(f"gaussian({options})", 2, 8)
