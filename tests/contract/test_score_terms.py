"""Score terms: every mechanism that takes them gives the softmax of its own pattern with the bias added."""

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.core.score import Pairs, ScoreTerm
from tests.contract import cases
from tests.tolerances import assert_close

SCORED = [(t, c) for t, c in cases.with_directions() if cases.supports(t, "score") and "paper" not in t]

BY_DISTANCE = ("alibi", "t5_bias(buckets=8, limit=12)")


class Learned(ScoreTerm):
    """A bias that depends on all four indices and has a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.3, 0.2, 0.11, -0.07], dtype=torch.float64))

    def tile(self, pairs: Pairs) -> Tensor:
        b, h, i, j = self.weight
        return b * pairs.batch + h * pairs.head + i * (pairs.query % 5) + j * (pairs.key % 7)


def bias_of(term: ScoreTerm, n: int, positions: Tensor) -> Tensor:
    """[B, H, N, M] the term as a matrix."""
    batch = positions.shape[0]
    return term.tile(
        Pairs(
            batch=torch.arange(batch).view(-1, 1, 1, 1),
            head=torch.arange(cases.HEADS).view(1, -1, 1, 1),
            query=positions[:, None, :, None],
            key=positions[:, None, None, :],
        )
    ).expand(batch, cases.HEADS, n, n)


def reference(weights: Tensor, bias: Tensor) -> Tensor:
    """Weights with a bias added to the scores; what a row lacks to one lies on a null key without bias."""
    seen = (weights > 0).any(-1, keepdim=True)
    null = torch.where(seen, 1 - weights.sum(-1, keepdim=True), 1.0)
    null = torch.where(null.abs() < 1e-12, 0.0, null)  # rounding, which a bias far below zero would blow up
    raised = weights * bias.double().exp()
    return raised / (raised.sum(-1, keepdim=True) + null)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "packed", "positions"])
@pytest.mark.parametrize(("text", "causal"), SCORED)
def test_terms_equal_the_dense_reference(text: str, causal: bool, kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    mechanism = cases.bound(text, generator)
    n = 70
    q, k, v = (x.requires_grad_() for x in cases.draw_qkv(n, generator))
    k = cases.share(text, q, k)
    scope = cases.scope_arguments(kind, n, generator)
    positions = mf.core.scope.Scope.of(causal, **scope).query_positions(n, q.device).expand(2, -1)
    by_name = (mf.score(name, cases.HEADS, cases.HEAD_DIM, causal=causal) for name in BY_DISTANCE)
    for term in (*(term.double() for term in by_name), Learned()):
        fast = mf.attend(mechanism, q, k, v, causal=causal, score=term, **scope)
        weights = mf.dense_weights(mechanism, q, k, causal=causal, **scope)
        slow = reference(weights, bias_of(term, n, positions)) @ v
        what = f"{text}, {type(term).__name__}, {kind}"
        assert_close(fast, slow, "parity", what)
        leaves = [q, v, *term.parameters()]
        direction = torch.randn(fast.shape, generator=generator, dtype=fast.dtype)
        for a, b in zip(
            torch.autograd.grad((fast * direction).sum(), leaves, retain_graph=True),
            torch.autograd.grad((slow * direction).sum(), leaves, retain_graph=True),
            strict=True,
        ):
            assert_close(a, b, "gradient", what)


def test_alibi_by_hand() -> None:
    """Two heads, slopes 2^-4 and 2^-8; the nearer key is favoured."""
    bias = bias_of_two_heads(torch.tensor([[0, 1, 3]]))
    expected = -torch.tensor([[0.0, 1, 3], [1, 0, 2], [3, 2, 0]], dtype=torch.float64)
    assert_close(bias[0, 0], expected / 16, "rounding")
    assert_close(bias[0, 1], expected / 256, "rounding")


def bias_of_two_heads(positions: Tensor) -> Tensor:
    term = mf.score("alibi", 2, cases.HEAD_DIM)
    pairs = Pairs(
        batch=torch.zeros(1, 1, 1, 1, dtype=torch.long),
        head=torch.arange(2).view(1, -1, 1, 1),
        query=positions[:, None, :, None],
        key=positions[:, None, None, :],
    )
    return term.tile(pairs).double()
