"""Guided attention against maps of weights, its annealing, and what cannot be asked for."""

import pytest
import torch

import mapformers as mf
from mapformers.core.carry import Carry
from mapformers.core.errors import MapformersError
from tests.heads.test_disagreement import DIM, HEADS, REAL, N, drawn, layer, weights_of
from tests.tolerances import assert_close

PLACES = {"same": 0, "next": 1, "previous": -1}


@pytest.mark.parametrize("measure", ["rows", "entries"])
@pytest.mark.parametrize("score", [None, "alibi", "talking_heads(mix=before)"])
@pytest.mark.parametrize(
    ("mechanism", "causal"), [("full", False), ("band(window=3)", True), ("band(window=0)", True)]
)
def test_it_is_the_square_of_the_difference(
    mechanism: str, causal: bool, score: str | None, measure: str
) -> None:
    """Also where the place lies outside the band: its weight is 0 there."""
    patterns = "same=1 previous=1 first=1" if causal else "same=1 next=1 previous=1 first=1"
    made = layer(mechanism, f"guided(patterns='{patterns}', measure={measure})", causal=causal, score=score)
    x = drawn()
    weights, total, count = weights_of(made, x), 0.0, 0
    places = [word.partition("=")[0] for word in patterns.split()]
    for b in range(2):
        real = REAL[b].nonzero().squeeze(-1).tolist()
        for rank, i in enumerate(real):
            count += 1
            for h, place in enumerate(places):
                target = torch.zeros(N, dtype=torch.float64)
                wanted = 0 if place == "first" else rank + PLACES[place]
                if 0 <= wanted < len(real):
                    target[real[wanted]] = 1
                total += (weights[b, h, i] - target).square().sum() / len(places)
    expected = total / count / (N if measure == "entries" else 1)
    assert_close(made.attend(x, Carry(key_is_real=REAL)).losses["guided"], expected, "rounding", mechanism)


def test_routing_counts_its_own_keys_only() -> None:
    """Clusters without the previous token give it the weight 0; the null key is no token."""
    made, x = layer("routing(clusters=3, window=4)", "guided(patterns='previous=4')", causal=True), drawn()
    weights = weights_of(made, x)
    total, count = 0.0, 0
    for b in range(2):
        real = REAL[b].nonzero().squeeze(-1).tolist()
        for rank, i in enumerate(real):
            count += 1
            target = torch.zeros(HEADS, N, dtype=torch.float64)
            if rank:
                target[:, real[rank - 1]] = 1
            total += (weights[b, :, i] - target).square().sum() / HEADS
    assert_close(made.attend(x, Carry(key_is_real=REAL)).losses["guided"], total / count, "rounding")


def test_it_fades() -> None:
    made = layer("full", "guided(hold=2, fade=4)")
    strengths = []
    for _ in range(8):
        (loss,) = made.head_losses()
        strengths.append(float(loss.strength()))
        made.update_centroids()
    assert strengths == [1, 1, 1, 0.75, 0.5, 0.25, 0, 0]
    assert int(mf.attention("full", DIM, HEADS, loss="guided").state_dict()["losses.0.steps"]) == 0


def test_gradients_move_weights_to_the_place() -> None:
    made, x = layer("full", "guided(patterns='first=4')").train(), drawn()
    optimiser = torch.optim.Adam(made.parameters(), lr=0.05)
    before = float(made.attend(x).losses["guided"].detach())
    for _ in range(60):
        optimiser.zero_grad()
        loss = made.attend(x).losses["guided"]
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.2 * before


def test_bad_patterns_are_refused() -> None:
    with pytest.raises(MapformersError, match="pattern 'next' needs causal=False"):
        layer("full", "guided(patterns='next=1')", causal=True)
    with pytest.raises(MapformersError, match="at most heads=4"):
        layer("full", "guided(patterns='same=5')")
    with pytest.raises(MapformersError, match="guided: pattern is unknown, got 'nxt'"):
        layer("full", "guided(patterns='nxt=1')")
    with pytest.raises(MapformersError, match="give whole numbers"):
        layer("full", "guided(patterns='next')")
    with pytest.raises(MapformersError, match="guided: needs attention weights, got performer"):
        layer("performer(features=8)", "guided", causal=True)
