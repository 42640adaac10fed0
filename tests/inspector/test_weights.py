"""Effective weights: those of the definition, whatever the mechanism and the way they are read."""

from typing import Any

import pytest
import torch

import mapformers as mf
from mapformers.core.errors import MapformersError
from mapformers.inspector import weights
from mapformers.inspector.weights import divergence, seen_by

N, DIM, HEADS = 40, 32, 4


def quiet(share: float) -> None:
    pass


def brute_force(layer: Any, call: Any) -> torch.Tensor:
    """[H, N, M] derivatives of the heads' outputs by the values, one key at a time."""
    from dataclasses import replace

    columns = []
    for j in range(call.k.shape[2]):
        v = torch.zeros_like(call.v)
        v[:, :, j, 0] = 1.0
        columns.append(layer.run_call(replace(call, v=v))[0][0, :, :, 0])
    return torch.stack(columns, -1)


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ("band(window=5)", {}),
        ("full", {}),
        ("routing(clusters=4, window=6):2 + band(window=5):2", {}),
        ("routing(clusters=4, window=6, query_clusters=2)", {"rotary": True}),
        ("reformer(buckets=4, window=6, rounds=2)", {}),
        ("linear", {}),
        ("performer(features=16)", {}),
        ("full", {"score": "alibi"}),
        ("band(window=6)", {"score": "t5_bias + adaptive_span(limit=16)"}),
        ("longformer(window=4, global_tokens=2)", {}),
        ("nsa(block=4, top=2, window=6)", {}),
        ("memory_compressed(stride=3)", {}),
        ("dilated(window=3, dilation=2)", {"kv_heads": 2}),
    ],
)
def test_weights_are_those_that_the_layer_uses(
    text: str, more: dict[str, Any], generator: torch.Generator
) -> None:
    layer = mf.attention(text, DIM, HEADS, causal=True, **more).double().eval()
    x = torch.randn(1, N, DIM, generator=generator, dtype=torch.float64)
    call = layer.attend(x).call
    wanted = brute_force(layer, call).float()
    seen = seen_by(layer, call, N, N, quiet)
    torch.testing.assert_close(seen.sample, wanted, rtol=1e-5, atol=1e-6)
    made = torch.zeros_like(wanted).scatter_add_(2, seen.key.clamp(min=0), seen.weight)
    torch.testing.assert_close(made, wanted.clamp(min=0), rtol=1e-5, atol=1e-6)
    assert (seen.weight[..., :-1] >= seen.weight[..., 1:]).all()
    away = (torch.arange(N)[:, None] - torch.arange(N)).abs()
    torch.testing.assert_close(seen.horizon.float(), (wanted * away).sum((1, 2)) / N, rtol=1e-4, atol=1e-4)


def test_blocks_of_any_size_give_the_same(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    layer = mf.attention("routing(clusters=4, window=6):2 + linear:2", DIM, HEADS, causal=True).eval()
    call = layer.attend(torch.randn(1, N, DIM, generator=generator)).call
    whole = seen_by(layer, call, 3, 8, quiet)
    monkeypatch.setattr(weights, "ROWS", 7)
    monkeypatch.setattr(weights, "PROBES", 11)
    parts = seen_by(layer, call, 3, 8, quiet)
    torch.testing.assert_close(parts.weight, whole.weight)
    torch.testing.assert_close(parts.entropy, whole.entropy)
    assert torch.equal(parts.key[:2], whole.key[:2])


def test_heads_that_are_mixed_in_the_values_are_refused(generator: torch.Generator) -> None:
    layer = mf.attention("full", DIM, HEADS, causal=True, score="talking_heads").eval()
    call = layer.attend(torch.randn(1, N, DIM, generator=generator)).call
    with pytest.raises(MapformersError, match="values must be those of one head"):
        seen_by(layer, call, 4, 4, quiet)


def test_divergence_by_hand() -> None:
    apart = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 0.0]]])
    found = divergence(apart)
    assert found[0, 1] == pytest.approx(1.0)
    assert found[0, 2] == pytest.approx(0.0)
    half = torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]]])
    assert divergence(half)[0, 1] == pytest.approx(0.3112781, abs=1e-6)
