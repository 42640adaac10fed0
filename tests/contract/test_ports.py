"""The other ports on every mechanism: projections, merges and losses equal the dense reference, or refuse.

What a projection, a merge or a loss computes by itself is proven in tests/heads.
"""

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.attention.multi_head import MultiHeadAttention
from mapformers.catalog import LOSSES, MERGES, PROJECTIONS, head_loss_weights
from mapformers.core.errors import MapformersError
from mapformers.report.combinations import TRIED, combinations
from tests.contract import cases
from tests.tolerances import assert_close

N = 33
SINGLE = [
    (text, causal)
    for text, causal in cases.with_directions(tuple(texts[0] for texts in cases.SPECS.values()))
    if "paper" not in text
]


def drawn(generator: torch.Generator) -> Tensor:
    return cases.draw((2, N, cases.DIM), generator).requires_grad_()


def reference(layer: MultiHeadAttention, x: Tensor) -> Tensor:
    """Projections, the definition of the mechanism, and the merge."""
    q, k, v = layer.project(x, x)
    (mechanism,) = layer.parts()
    k = k.expand(-1, mechanism.shape.kv_heads, -1, -1)
    k = q if mechanism.shares_qk else k
    weights = mf.dense_weights(mechanism, q, k, causal=layer.options.causal)
    return layer.merge(weights @ v.repeat_interleave(q.shape[1] // v.shape[1], 1))


def runs(text: str, causal: bool, **port: str) -> bool:
    """Whether the combination runs; if not, its one error must name a remedy."""
    try:
        layer = mf.attention(text, cases.DIM, cases.HEADS, causal=causal, **port)  # type: ignore[arg-type]
        layer.train().attend(torch.zeros(1, N, cases.DIM))
    except MapformersError as error:
        refusal = str(error)
    else:
        return True
    assert ";" in refusal
    assert "\n" not in refusal
    return False


@pytest.mark.slow
@pytest.mark.parametrize(("text", "causal"), SINGLE)
def test_projections_and_merges(text: str, causal: bool, generator: torch.Generator) -> None:
    for kind in ("project", "merge"):
        for name in TRIED[kind]:
            if name != "local_global":  # two sets: tests/attention/test_local_global.py
                equals_the_reference(text, causal, kind, name, generator)


def equals_the_reference(text: str, causal: bool, kind: str, name: str, generator: torch.Generator) -> None:
    """Outputs and gradients of one port on one mechanism."""
    if not runs(text, causal, **{kind: name}):
        return
    layer = mf.attention(text, cases.DIM, cases.HEADS, causal=causal, **{kind: name}).double().eval()
    x = drawn(generator)
    fast, slow = layer(x), reference(layer, x)
    assert_close(fast, slow, "parity", f"{text}, {name}")
    direction = torch.randn(fast.shape, generator=generator, dtype=fast.dtype)
    leaves = [x, *(p for p in layer.project.parameters())]
    for a, b in zip(gradients(fast, leaves, direction), gradients(slow, leaves, direction), strict=True):
        assert_close(a, b, "gradient", f"{text}, {name}")


def gradients(output: Tensor, leaves: list[Tensor], direction: Tensor) -> list[Tensor]:
    found = torch.autograd.grad((output * direction).sum(), leaves, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if x is None else x for leaf, x in zip(leaves, found, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(("text", "causal"), SINGLE)
def test_losses(text: str, causal: bool, generator: torch.Generator) -> None:
    """Those of weights equal the losses of the definition's maps; those of values exist everywhere."""
    for loss in TRIED["loss"]:
        equals_the_maps(text, causal, loss, generator)


def equals_the_maps(text: str, causal: bool, loss: str, generator: torch.Generator) -> None:
    """One loss on one mechanism."""
    if not runs(text, causal, loss=loss):
        return
    layer = mf.attention(text, cases.DIM, cases.HEADS, causal=causal, loss=loss).double().train()
    x = drawn(generator)
    (value,) = (loss for name, loss in layer.attend(x).losses.items() if name in head_loss_weights())
    assert value.isfinite()
    if not layer.head_losses()[0].reads_weights:
        return
    q, k, _ = layer.project(x, x)
    (mechanism,) = layer.parts()
    weights = mf.dense_weights(mechanism, q, q if mechanism.shares_qk else k, causal=causal)
    if "position" in loss:
        expected = torch.einsum("bgnm,bhnm->bn", weights, weights).mean() / cases.HEADS**2
    else:  # previous=1 first=1
        goals = torch.zeros(2, N, N, dtype=torch.float64)
        goals[0, torch.arange(1, N), torch.arange(N - 1)] = 1
        goals[1, :, 0] = 1
        expected = (weights[:, :2] - goals).square().sum(-1).mean()
    assert_close(value, expected, "parity", f"{text}, {loss}")


def test_every_entry_is_tried() -> None:
    for port, entries in (("project", PROJECTIONS), ("merge", MERGES), ("loss", LOSSES)):
        names = {text.partition("(")[0] for text in TRIED[port]}
        assert names == {entry.card.name for entry in entries}  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_table_says_what_happens() -> None:
    found = combinations()
    assert found["score"]["adaptive_span"]["band"] == "ok"
    assert found["score"]["talking_heads"]["routing"] == "ok"
    assert found["score"]["evolving"]["band"] == "refuses"
    assert found["score"]["evolving"]["full"] == "ok"
    assert found["score"]["alibi"]["linear"] == "refuses"
    assert found["loss"]["disagreement"]["linear"] == "ok"
    assert found["loss"]["disagreement(of=position)"]["routing"] == "refuses"
    assert found["project"]["collaborative"]["band"] == "ok"
