"""Multi-scale attention: windows by hand, full attention, own values, heads per scale, the shortened plan."""

import pytest
import torch

import mapformers as mf
from mapformers.priors.multi_scale import MultiScaleConfig, heads_per_scale
from tests.priors.distances import by_softmax, decodes_as_forward, drawn, matrix
from tests.tolerances import assert_close

INF = float("inf")


def test_by_hand() -> None:
    """Scale 1 sees the query, 3 its neighbours too, 4 and 5 two tokens on each side."""
    term = mf.score("multi_scale(scales='1,3,4,5')", 4, 8)
    found = matrix(term, 4, torch.arange(7))[0, :, 3]
    seen = ["...x...", "..xxx..", ".xxxxx.", ".xxxxx."]
    for head, row in enumerate(seen):
        assert found[head].tolist() == [0.0 if mark == "x" else -INF for mark in row]


@pytest.mark.parametrize("causal", [True, False])
def test_each_head_is_its_dense_band(causal: bool, generator: torch.Generator) -> None:
    term = mf.score("multi_scale(scales='1,6,13,40')", 4, 8, causal=causal)
    q, k, v = drawn(4, 33, generator)
    away = (torch.arange(33)[:, None] - torch.arange(33)).abs()
    bias = torch.stack([torch.where(away <= scale // 2, 0.0, -INF) for scale in (1, 6, 13, 40)])
    for mechanism in (mf.mechanism("full"), mf.mechanism("band", window=40)):
        found = mf.attend(mechanism, q, k, v, causal=causal, score=term)
        assert_close(found, by_softmax(q, k, v, bias.double(), causal), "parity")
        assert_close(found[:, 0], v[:, 0], "parity", "scale 1: each token its own value")


@pytest.mark.parametrize("causal", [True, False])
def test_scales_of_twice_the_length_are_full_attention(causal: bool, generator: torch.Generator) -> None:
    q, k, v = drawn(2, 17, generator)
    term = mf.score("multi_scale(scales='34,400')", 2, 8, causal=causal)
    found = mf.attend(mf.mechanism("full"), q, k, v, causal=causal, score=term)
    assert_close(found, by_softmax(q, k, v, torch.zeros(()), causal), "parity")


def test_heads_per_scale_by_hand() -> None:
    """Eight heads: even shares, then e^z of z = 2, 1, 0 (shares 5.3, 2.0, 0.7), then far up the stack."""
    even = heads_per_scale([1, 3, 9], 8, MultiScaleConfig())
    low = heads_per_scale([1, 3, 9], 8, MultiScaleConfig(alpha=1.0))
    high = heads_per_scale([1, 3, 9], 8, MultiScaleConfig(alpha=1.0, layer=100))
    turned = heads_per_scale([9, 1, 3], 8, MultiScaleConfig(alpha=1.0))
    assert (even, low, high, turned) == ([3, 3, 2], [5, 2, 1], [3, 3, 2], [1, 5, 2])


def test_reach_shortens_what_decoding_keeps(generator: torch.Generator) -> None:
    """Full attention under the term is a band: its state is a ring, and it decodes exactly."""
    text = "multi_scale(scales='3,8')"
    assert mf.score(text, 2, 8).reach() == 4
    step, whole = decodes_as_forward("full", text, generator)
    assert_close(step, whole, "decode")
    layer = mf.attention("full", 16, 2, causal=True, score=text)
    _, state = layer.step(torch.randn(1, 50, 16, generator=generator), layer.init_state(1))
    (ring,) = state.parts
    assert type(ring).__name__ == "RingState"


@pytest.mark.parametrize(
    "options",
    ["scales='0,3'", "scales='1.5'", "scales='a'", "scales=''", "alpha=-1.0", "layer=0", "scales='1,2,3'"],
)
def test_bad_options_are_refused(options: str) -> None:
    with pytest.raises(mf.MapformersError, match="multi_scale: "):
        mf.score(f"multi_scale({options})", 2, 8)
