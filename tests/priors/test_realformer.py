"""RealFormer: a stack against the sums written out, both forms, and layers that see different keys."""

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.attention.multi_head import MultiHeadAttention
from mapformers.core.carry import Carry
from mapformers.core.errors import MapformersError
from tests.tolerances import assert_close

DIM, HEADS, N = 16, 2, 13


def stack(
    score: str, mechanisms: tuple[str, ...], causal: bool = True, **options: bool
) -> list[MultiHeadAttention]:
    return [
        mf.attention(name, DIM, HEADS, causal=True, score=score, seed=i).double()
        for i, name in enumerate(mechanisms)
    ]


def through(layers: list[MultiHeadAttention], x: Tensor, reset: bool = False) -> list[Tensor]:
    carry, outputs = Carry(), []
    for layer in layers:
        result = layer.attend(x, Carry() if reset else carry)
        x, carry = x + result.output, result.carry
        outputs.append(result.output)
    return outputs


def written_out(layers: list[MultiHeadAttention], x: Tensor, mean: bool) -> list[Tensor]:
    """Sums of the score maps, layer after layer."""
    total, outputs = torch.zeros(1, dtype=torch.float64), []
    seen = torch.ones(N, N, dtype=torch.bool).tril()
    for index, layer in enumerate(layers):
        q, k, v = layer.project(x, x)
        total = total + q @ k.mT / (DIM // HEADS) ** 0.5
        scores = (total / (index + 1) if mean else total).masked_fill(~seen, float("-inf"))
        output = layer.merge(torch.softmax(scores, -1) @ v)
        outputs.append(output)
        x = x + output
    return outputs


def drawn() -> Tensor:
    return torch.randn(1, N, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("form", ["pairs", "scores"])
def test_it_is_the_sum_of_the_layers(form: str, mean: bool) -> None:
    layers = stack(f"realformer(form={form}, mean={str(mean).lower()})", ("full",) * 4)
    expected = written_out(layers, drawn(), mean)
    for actual, right in zip(through(layers, drawn()), expected, strict=True):
        assert_close(actual, right, "parity", form)


def test_layers_may_see_different_keys() -> None:
    """A band between full layers: its own keys, the scores of all layers."""
    layers = stack("realformer", ("full", "band(window=3)", "full", "band(window=3)"))
    outputs, total, x = [], torch.zeros(1, dtype=torch.float64), drawn()
    for index, layer in enumerate(layers):
        q, k, v = layer.project(x, x)
        total = total + q @ k.mT / (DIM // HEADS) ** 0.5
        away = torch.arange(N)[:, None] - torch.arange(N)[None]
        hidden = (away < 0) | (away > (3 if index % 2 else N))
        outputs.append(layer.merge(torch.softmax(total.masked_fill(hidden, float("-inf")), -1) @ v))
        x = x + outputs[-1]
    for actual, right in zip(through(layers, drawn()), outputs, strict=True):
        assert_close(actual, right, "parity")


def test_without_the_carry_it_is_plain_attention() -> None:
    layers, plain = stack("realformer", ("full",) * 3), stack("realformer", ("full",) * 3)
    for layer in plain:
        layer.score = None
    for a, b in zip(through(layers, drawn(), reset=True), through(plain, drawn()), strict=True):
        assert_close(a, b, "rounding")


def test_it_learns_through_all_layers() -> None:
    layers = stack("realformer", ("full",) * 3)
    through(layers, drawn())[-1].square().sum().backward()
    grad = layers[0].project.query.weight.grad
    assert grad is not None
    assert grad.abs().max() > 0


def test_biases_do_not_add_up() -> None:
    """ALiBi counts once in every layer, however many layers are below."""
    layers = stack("realformer + alibi", ("full",) * 3)
    x, total = drawn(), torch.zeros(1, dtype=torch.float64)
    away = torch.arange(N)[:, None] - torch.arange(N)[None]
    slopes = torch.tensor([2.0**-4, 2.0**-8], dtype=torch.float64)[:, None, None]
    for layer, actual in zip(layers, through(layers, drawn()), strict=True):
        q, k, v = layer.project(x, x)
        total = total + q @ k.mT / (DIM // HEADS) ** 0.5
        scores = (total - slopes * away.abs()).masked_fill(away < 0, float("-inf"))
        expected = layer.merge(torch.softmax(scores, -1) @ v)
        assert_close(actual, expected, "parity")
        x = x + expected


def test_projections_with_a_second_set_are_refused() -> None:
    with pytest.raises(MapformersError, match="local_global: takes no score terms that read the layer below"):
        mf.attention("longformer(global_tokens=1)", DIM, HEADS, project="local_global", score="realformer")
