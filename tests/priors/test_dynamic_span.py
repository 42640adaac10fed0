"""Dynamic spans: every query has its own, from its formula; the loss is their mean."""

import torch

import mapformers as mf
from mapformers.priors.adaptive_span import AdaptiveSpan
from tests.tolerances import assert_close

HEADS, DIM, N = 2, 4, 15


def made(dynamic: bool = True) -> AdaptiveSpan:
    text = f"adaptive_span(limit=12, ramp=3, initial=0.4, dynamic={str(dynamic).lower()})"
    term = mf.score(text, HEADS, DIM, causal=True).double()
    assert isinstance(term, AdaptiveSpan)
    return term


def drawn() -> torch.Tensor:
    return torch.randn(3, 1, HEADS, N, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_it_is_the_formula() -> None:
    term, (q, k, v) = made(), drawn()
    assert term.move is not None
    start = torch.logit(term.ratio[0])
    expected = torch.zeros(1, HEADS, N, DIM, dtype=torch.float64)
    for h in range(HEADS):
        for i in range(N):
            span = 12 * torch.sigmoid(term.move[h, 0] @ q[0, h, i] + start)
            away = i - torch.arange(i + 1)
            ramp = ((3 + span - away) / 3).clamp(0, 1)
            weights = ramp * torch.exp(k[0, h, : i + 1] @ q[0, h, i] / DIM**0.5)
            expected[0, h, i] = (weights / weights.sum()) @ v[0, h, : i + 1]
    assert_close(mf.attend(mf.mechanism("full"), q, k, v, causal=True, score=term), expected, "rounding")


def test_queries_that_say_nothing_have_the_span_of_their_head() -> None:
    term, fixed, (q, k, v) = made(), made(dynamic=False), drawn()
    with torch.no_grad():
        term.move.zero_()
    band = mf.mechanism("band", window=N)
    outputs = [mf.attend(band, q, k, v, causal=True, score=score) for score in (term, fixed)]
    assert_close(*outputs, "rounding")


def test_the_loss_is_the_mean_span() -> None:
    layer = mf.attention("full", 8, HEADS, causal=True, score=made()).double()
    x = torch.randn(1, N, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = layer.attend(x).carry.losses["span"]
    q, _, _ = layer.project(x, x)
    moved = (q * layer.score.move).sum(-1)
    expected = 12 * torch.sigmoid(moved + torch.logit(layer.score.ratio)[:, None])
    assert_close(loss, expected.mean(), "rounding")
    loss.backward()
    assert layer.score.move.grad.abs().max() > 0
    assert "span" not in layer.eval().attend(x).carry.losses
