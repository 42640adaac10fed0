"""Disagreement against maps of weights, at its limits, and in training."""

import contextlib

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.attention.multi_head import MultiHeadAttention
from mapformers.core.carry import Carry
from mapformers.core.errors import MapformersError
from tests.tolerances import assert_close

DIM, HEADS, N = 16, 4, 11


def layer(mechanism: str, loss: str, **options: object) -> MultiHeadAttention:
    return mf.attention(mechanism, DIM, HEADS, loss=loss, **options).double()  # type: ignore[arg-type]


def drawn() -> Tensor:
    return torch.randn(2, N, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


REAL = torch.ones(2, N, dtype=torch.bool)
REAL[1, :4] = False


def found(made: MultiHeadAttention, x: Tensor) -> Tensor:
    (loss,) = made.attend(x, Carry(key_is_real=REAL)).losses.values()
    return loss


def outputs_of(made: MultiHeadAttention, x: Tensor) -> Tensor:
    """[B, H, N, D] of the heads."""
    heads = []
    handle = made.merge.register_forward_pre_hook(lambda _, inputs: heads.append(inputs[0]))
    made(x, key_is_real=REAL)
    handle.remove()
    return heads[0]


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("of", ["output", "subspace"])
def test_cosines_one_by_one(of: str, include_self: bool) -> None:
    text = f"disagreement(of={of}, include_self={str(include_self).lower()})"
    made, x = layer("band(window=3)", text, causal=True), drawn()
    rows = outputs_of(made, x) if of == "output" else made.project(x, x)[2]
    total, count = 0.0, 0
    for b in range(2):
        for t in range(N):
            if not REAL[b, t]:
                continue
            count += 1
            for g in range(HEADS):
                for h in range(HEADS):
                    if g != h or include_self:
                        total += torch.cosine_similarity(rows[b, g, t], rows[b, h, t], dim=0) / HEADS**2
    assert_close(found(made, x), total / count, "rounding", text)


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("score", [None, "alibi", "shaw(limit=2) + talking_heads(mix=before)"])
@pytest.mark.parametrize("mechanism", ["full", "band(window=3)", "longformer(window=2, global_tokens=2)"])
def test_weights_from_log_sums(mechanism: str, score: str | None, include_self: bool) -> None:
    """The identity equals the maps of weights, which a table of ones for values reads off."""
    text = f"disagreement(of=position, include_self={str(include_self).lower()})"
    made, x = layer(mechanism, text, causal=True, score=score), drawn()
    weights = weights_of(made, x)  # [B, H, N, N]
    products = torch.einsum("bgnm,bhnm->bnghm", weights, weights).sum(-1)
    if not include_self:
        products = products * (1 - torch.eye(HEADS, dtype=torch.float64))
    expected = (products.sum((-1, -2)) / HEADS**2)[REAL].mean()
    assert_close(found(made, x), expected, "rounding", f"{mechanism}, {score}")


def weights_of(made: MultiHeadAttention, x: Tensor) -> Tensor:
    """[B, H, N, N] read off by values that name their token."""
    project = made.project.forward

    def naming(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, _ = project(a, b)
        return q, k, torch.eye(N, dtype=torch.float64).expand(2, HEADS, N, N)

    heads = []
    made.project.forward = naming  # type: ignore[method-assign]
    handle = made.merge.register_forward_pre_hook(lambda _, inputs: heads.append(inputs[0]))
    made.eval()
    with contextlib.suppress(RuntimeError):  # the merge cannot take values of this width
        made(x, key_is_real=REAL)
    made.train()
    handle.remove()
    made.project.forward = project  # type: ignore[method-assign]
    return heads[0]


def test_equal_heads_disagree_least() -> None:
    made, x = layer("full", "disagreement"), drawn()
    with torch.no_grad():
        for part in (made.project.query, made.project.key, made.project.value):
            part.weight.copy_(part.weight[: DIM // HEADS].repeat(HEADS, 1))
    assert_close(found(made, x), torch.tensor(1.0, dtype=torch.float64), "rounding")
    alone = mf.attention("full", DIM, 1, loss="disagreement").double()
    assert_close(found(alone, x), torch.tensor(1.0, dtype=torch.float64), "rounding")


def test_it_is_for_training_only_and_has_gradients() -> None:
    made, x = layer("band(window=3)", "disagreement(of=position)"), drawn()
    found(made, x).backward()
    assert made.project.query.weight.grad.abs().max() > 0
    assert not made.eval().attend(x).losses


def test_heads_with_keys_of_their_own_are_refused() -> None:
    routed = layer("routing(clusters=2, window=4)", "disagreement(of=position)", causal=True)
    with pytest.raises(MapformersError, match="one mechanism that shows all heads the same keys"):
        found(routed, drawn())
    with pytest.raises(MapformersError, match="disagreement: needs attention weights, got linear"):
        layer("linear", "disagreement(of=position)", causal=True)
    assert found(layer("linear", "disagreement(of=output)", causal=True), drawn()) <= 1
