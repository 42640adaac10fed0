"""Evolving attention: a stack against the formula, its identities, masks and causality."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mapformers as mf
from mapformers.attention.multi_head import MultiHeadAttention
from mapformers.core.carry import Carry
from mapformers.core.errors import MapformersError
from tests.tolerances import assert_close

DIM, HEADS, N = 16, 2, 9


def stack(score: str | None, causal: bool, count: int = 3) -> list[MultiHeadAttention]:
    return [
        mf.attention("full", DIM, HEADS, causal=causal, score=score, seed=i).double() for i in range(count)
    ]


def same_weights(layers: list[MultiHeadAttention], others: list[MultiHeadAttention]) -> None:
    for layer, other in zip(layers, others, strict=True):
        other.project.load_state_dict(layer.project.state_dict())
        other.merge.load_state_dict(layer.merge.state_dict())


def through(layers: list[MultiHeadAttention], x: Tensor, **scope: Tensor) -> list[Tensor]:
    carry, outputs = Carry(**scope), []
    for layer in layers:
        result = layer.attend(x, carry)
        x, carry = x + result.output, result.carry
        outputs.append(result.output)
    return outputs


def drawn(n: int = N) -> Tensor:
    return torch.randn(1, n, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("causal", [False, True])
def test_it_is_the_formula(causal: bool) -> None:
    """One entry after another: rows i - 1 to i + 1 (causal: to i), columns j - 1 to j + 1."""
    layers = stack("evolving(prev_weight=0.3, conv_weight=0.6)", causal)
    x, below = drawn(), None
    seen = torch.ones(N, N, dtype=torch.bool).tril() if causal else torch.ones(N, N, dtype=torch.bool)
    for layer, actual in zip(layers, through(layers, drawn()), strict=True):
        q, k, v = layer.project(x, x)
        scores = q @ k.mT / (DIM // HEADS) ** 0.5
        if below is not None:
            scores = 0.7 * scores + 0.3 * below
            shown, convolved = scores.masked_fill(~seen, 0.0), torch.zeros_like(scores)
            weight = layer.score.weight
            for o in range(HEADS):
                for i in range(N):
                    for j in range(N):
                        for di in range(weight.shape[2]):
                            for dj in range(3):
                                row, column = i + di - 1, j + dj - 1
                                if 0 <= row < N and 0 <= column < N:
                                    convolved[0, o, i, j] += weight[o, :, di, dj] @ shown[0, :, row, column]
            scores = 0.6 * torch.relu(convolved) + 0.4 * scores
        below = scores
        expected = layer.merge(torch.softmax(scores.masked_fill(~seen, float("-inf")), -1) @ v)
        assert_close(actual, expected, "parity")
        x = x + expected


@pytest.mark.parametrize("causal", [False, True])
def test_without_both_weights_it_is_plain_attention(causal: bool) -> None:
    layers, plain = stack("evolving(prev_weight=0.0, conv_weight=0.0)", causal), stack(None, causal)
    same_weights(layers, plain)
    for a, b in zip(through(layers, drawn()), through(plain, drawn()), strict=True):
        assert_close(a, b, "rounding")


def test_an_identity_kernel_with_a_linear_activation_is_no_convolution() -> None:
    layers = stack("evolving(prev_weight=0.5, conv_weight=0.9, activation=linear)", True)
    others = stack("evolving(prev_weight=0.5, conv_weight=0.0)", True)
    same_weights(layers, others)
    for layer in layers:
        with torch.no_grad():
            layer.score.weight.copy_(F.pad(torch.eye(HEADS)[:, :, None, None], (1, 1, 1, 0)))
    for a, b in zip(through(layers, drawn()), through(others, drawn()), strict=True):
        assert_close(a, b, "rounding")


def test_padding_in_between_parts_no_neighbours() -> None:
    for causal in (False, True):
        layers = stack("evolving", causal)
        x = drawn(12)
        real = torch.ones(1, 12, dtype=torch.bool)
        real[0, [0, 5, 11]] = False
        with_padding = through(layers, x, key_is_real=real)[-1][real]
        assert_close(with_padding, through(layers, x[:, real[0]])[-1][0], "rounding", f"causal={causal}")


def test_documents_do_not_meet() -> None:
    layers = stack("evolving", True)
    x = drawn(10)
    segments = torch.tensor([[0] * 4 + [1] * 6])
    packed = through(layers, x, segments=segments)[-1]
    assert_close(packed[:, :4], through(layers, x[:, :4])[-1], "rounding")
    assert_close(packed[:, 4:], through(layers, x[:, 4:])[-1], "rounding")


def test_sparse_mechanisms_are_refused() -> None:
    with pytest.raises(MapformersError, match=r"band: score terms that need the scores of all pairs"):
        mf.attention("band(window=4)", DIM, HEADS, score="evolving")
