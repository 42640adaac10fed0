"""Ports together: several terms, a projection, a merge and a loss on one layer, decoded token by token."""

import pytest
import torch

import mapformers as mf
from mapformers.core.errors import MapformersError
from tests.contract import cases
from tests.tolerances import assert_close

N = 21
LAYERS = (
    ("band(window=6)", {"score": "alibi + adaptive_span(limit=9, ramp=3, initial=0.4)", "kv_heads": 2}),
    ("full", {"score": "realformer + t5_bias(buckets=8, limit=12)", "kv_heads": 1, "rotary": True}),
    (
        "band(window=6):2 + routing(clusters=3, window=5):2",
        {"score": "talking_heads(dynamic=true) + shaw(limit=3)", "kv_heads": 2, "merge": "capsule"},
    ),
    (
        "longformer(window=4, global_tokens=2)",
        {
            "score": "localness(window=layer) + multi_scale(scales='3,9')",
            "project": "collaborative(width=20)",
        },
    ),
    (
        "block_local(block=5)",
        {"score": "synthesizer(kind=random, limit=30, mix=true)", "merge": "capsule(routing=em)"},
    ),
)


@pytest.mark.parametrize(("mechanism", "ports"), LAYERS)
def test_decoding(mechanism: str, ports: dict[str, object], generator: torch.Generator) -> None:
    layer = mf.attention(
        mechanism, cases.DIM, cases.HEADS, causal=True, loss="disagreement", **ports
    ).double()  # type: ignore[arg-type]
    cases.stir(layer, generator)
    layer.eval()
    x = cases.draw((2, N, cases.DIM), generator)
    real = torch.ones(2, N, dtype=torch.bool)
    real[0, :4], real[1, 9] = False, False
    expected = layer(x, key_is_real=real)
    state, outputs = layer.init_state(2), []
    for rows in (slice(0, 3), slice(3, 4), slice(4, 12), *(slice(t, t + 1) for t in range(12, N))):
        y, state = layer.step(x[:, rows], state, key_is_real=real[:, rows])
        outputs.append(y)
    assert_close(torch.cat(outputs, 1)[real], expected[real], "decode", mechanism)
    assert_close(layer(x[:1, 4:]), expected[:1, 4:], "rounding", "without padding")
    changed = torch.cat([x[:, :11], -x[:, 11:]], 1)
    assert_close(layer(changed, key_is_real=real)[:, :11], expected[:, :11], "rounding", "later tokens")


def test_spans_shorten_what_decoding_keeps(generator: torch.Generator) -> None:
    """Full attention under a span of 9 and a ramp of 3 keeps 13 keys, however many tokens come."""
    layer = mf.attention(
        "full", cases.DIM, cases.HEADS, causal=True, score="adaptive_span(limit=9, ramp=3, initial=1.0)"
    ).double()
    x = cases.draw((1, 60, cases.DIM), generator)
    _, state = layer.step(x, layer.init_state(1))
    (part,) = state.parts
    assert part.window == 13
    y, _ = layer.step(x[:, :1], state)
    assert_close(y, layer(torch.cat([x, x[:, :1]], 1))[:, -1:], "decode")


@pytest.mark.parametrize(
    ("ports", "message"),
    [
        ({"score": "synthesizer + evolving"}, "synthesizer and evolving exclude each other"),
        ({"score": "hard_gaussian + realformer"}, "hard_gaussian and realformer exclude each other"),
        ({"score": "synthesizer + talking_heads"}, "synthesizer and talking_heads exclude each other"),
        ({"kv_heads": 2, "project": "multi_query"}, "kv_heads and project exclude each other"),
        ({"project": "collaborative", "rotary": True}, "rotary: is not supported by collaborative"),
    ],
)
def test_conflicts_are_one_clear_error(ports: dict[str, object], message: str) -> None:
    with pytest.raises(MapformersError, match=message) as caught:
        mf.attention("full", cases.DIM, cases.HEADS, causal=True, **ports)  # type: ignore[arg-type]
    assert ";" in str(caught.value)
    assert "\n" not in str(caught.value)
