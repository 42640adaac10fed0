"""Talking heads: the formula with maps of scores and weights, and heads with plans of their own."""

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.core.errors import MapformersError
from mapformers.heads.talking_heads import TalkingHeads
from tests.tolerances import assert_close

HEADS, DIM, N = 3, 4, 10


def made(options: str = "") -> TalkingHeads:
    term = mf.score(f"talking_heads({options})", HEADS, DIM).double()
    assert isinstance(term, TalkingHeads)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in term.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return term


def drawn() -> Tensor:
    return torch.randn(3, 1, HEADS, N, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def with_maps(term: TalkingHeads, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """J = Q K^T; L = P J; W = softmax(mask(L)); U = P_w W; O = U V, as the paper writes them."""
    flat = q.transpose(1, 2).flatten(2)  # [B, N, H D]
    eye = torch.eye(HEADS, dtype=torch.float64)
    before = eye if term.before is None else term.before
    after = eye if term.after is None else term.after
    p, w = (fixed.expand(1, N, -1, -1) for fixed in (before, after))
    if term.move_before is not None:
        p = p + term.move_before(flat).view(1, N, HEADS, HEADS)
    if term.move_after is not None:
        w = w + term.move_after(flat).view(1, N, HEADS, HEADS)
    scores = q @ k.mT / DIM**0.5
    mixed = torch.einsum("bngh,bgnm->bhnm", p, scores)
    weights = torch.softmax(mixed.masked_fill(~seen, float("-inf")), -1)
    return torch.einsum("bnhg,bhnm->bgnm", w, weights) @ v


@pytest.mark.parametrize("options", ["mix=both", "mix=before", "mix=after", "dynamic=true"])
def test_it_is_the_formula(options: str) -> None:
    term, (q, k, v) = made(options), drawn()
    seen = torch.ones(N, N, dtype=torch.bool).tril()
    actual = mf.attend(mf.mechanism("full"), q, k, v, causal=True, score=term)
    assert_close(actual, with_maps(term, q, k, v, seen), "rounding", options)
    seen = seen.triu(-3)
    actual = mf.attend(mf.mechanism("band", window=3), q, k, v, causal=True, score=term)
    assert_close(actual, with_maps(term, q, k, v, seen), "rounding", options)


def test_it_starts_as_plain_attention() -> None:
    q, k, v = drawn()
    term = mf.score("talking_heads", HEADS, DIM).double()
    band = mf.mechanism("band", window=3)
    assert_close(mf.attend(band, q, k, v, score=term), mf.attend(band, q, k, v), "rounding")


def test_heads_of_different_mechanisms_talk() -> None:
    """A head with a band of its own mixes the scores of all heads inside its band."""
    layer = mf.attention("full:1 + band(window=3):2", HEADS * DIM, HEADS, causal=True, score=made()).double()
    x = torch.randn(1, N, HEADS * DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = torch.ones(N, N, dtype=torch.bool).tril()
    seen = torch.stack([whole, whole.triu(-3), whole.triu(-3)])
    expected = layer.merge(with_maps(layer.score, *layer.project(x, x), seen))
    assert_close(layer(x), expected, "rounding")


def test_the_mixing_learns() -> None:
    q, k, v = drawn()
    term = made("dynamic=true")
    mf.attend(mf.mechanism("band", window=3), q, k, v, score=term).square().sum().backward()
    for name, parameter in term.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_mechanisms_with_factors_refuse() -> None:
    q, k, v = drawn()
    with pytest.raises(MapformersError, match="linear: score is not supported"):
        mf.attend(mf.mechanism("linear"), q, k, v, score=made())


def test_scores_of_a_null_key_are_mixed_as_well() -> None:
    """Routing's null key of a head is scored by that head's queries, and the scores are mixed."""
    term, (q, k, v) = made("mix=before"), drawn()
    routing = mf.mechanism("routing", clusters=2, window=N).double()
    mf.attend(routing, q, k, v, causal=True)  # fixes its sizes
    with torch.no_grad():
        routing.null_key.normal_(generator=torch.Generator().manual_seed(3))
    seen = mf.dense_weights(routing, q, k, causal=True) > 0
    null = (q * routing.null_key[:, None]).sum(-1, keepdim=True)  # [1, H, N, 1]
    scores = torch.einsum("gh,bgnm->bhnm", term.before, torch.cat([q @ k.mT, null], -1)) / DIM**0.5
    hidden = torch.cat([~seen, torch.zeros_like(seen[..., :1])], -1)
    weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), -1)[..., :-1]
    expected = torch.where(seen.any(-1, keepdim=True), weights @ v, 0.0)
    assert_close(mf.attend(routing, q, k, v, causal=True, score=term), expected, "rounding")
