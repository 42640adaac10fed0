"""The plan Representatives: a few queries attend, and every row takes the output of one of them."""

import pytest
import torch

from mapformers.attention.choices import Choices
from mapformers.core.errors import MapformersError
from mapformers.core.plans import Dense, Representatives, Union, Windows
from mapformers.core.scope import Scope
from mapformers.core.score import ScoreTerm
from mapformers.kernels.run import run
from tests.tolerances import assert_close

B, H, N, M, C, D = 2, 3, 11, 9, 4, 5


@pytest.fixture
def qkv(generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    sizes = (N, M, M, C)
    return tuple(torch.randn(B, H, size, D, generator=generator, dtype=torch.float64) for size in sizes)


def rows(generator: torch.Generator) -> torch.Tensor:
    row = torch.randint(C, (B, H, N), generator=generator)
    row[0, 0, 3] = -1
    return row


def test_each_row_has_the_output_of_its_own(qkv: tuple, generator: torch.Generator) -> None:
    q, k, v, few = (x.requires_grad_() for x in qkv)
    real, row = torch.rand(B, M, generator=generator) > 0.3, rows(generator)
    attended = run(Representatives(few, row, Dense()), q, k, v, Scope(key_is_real=real))
    spread = torch.stack([torch.stack([few[b, h, row[b, h]] for h in range(H)]) for b in range(B)])
    scores = (spread @ k.mT / D**0.5).masked_fill(~real[:, None, None], float("-inf"))
    seen = (row >= 0).unsqueeze(-1)
    output = torch.where(seen, scores.softmax(-1) @ v, 0.0)
    assert_close(attended.output, output, "parity")
    assert_close(attended.lse[row >= 0], scores.logsumexp(-1)[row >= 0], "parity")
    assert (attended.lse[row < 0] == float("-inf")).all()
    fast = torch.autograd.grad(attended.output.square().sum(), (k, v, few))
    for a, b in zip(fast, torch.autograd.grad(output.square().sum(), (k, v, few)), strict=True):
        assert_close(a, b, "gradient")


def test_it_is_a_part_of_a_union(qkv: tuple, generator: torch.Generator) -> None:
    """Its log-sum-exp is that of the representative: two parts of the keys give the whole."""
    q, k, v, few = qkv
    row, first = rows(generator), torch.arange(M).expand(1, 1, C, M) < 4
    halves = tuple(Representatives(few, row, Dense(allowed=part)) for part in (first, ~first))
    whole = run(Representatives(few, row, Dense()), q, k, v, Scope())
    merged = run(Union(halves), q, k, v, Scope())
    assert_close(merged.output, whole.output, "parity")


def test_refusals(qkv: tuple, generator: torch.Generator) -> None:
    q, k, v, few = qkv
    plan = Representatives(few, rows(generator), Dense())
    for scope in (Scope(causal=True), Scope(segments=torch.zeros(B, N, dtype=torch.long))):
        with pytest.raises(MapformersError, match="representatives: take"):
            run(plan, q, k, v, scope)
    with pytest.raises(MapformersError, match="representatives: take"):
        run(plan, q, k, v, Scope(), ScoreTerm())


def test_choices_keep_the_rows_and_those_of_the_plan_inside(qkv: tuple, generator: torch.Generator) -> None:
    few, row = qkv[3], rows(generator)
    inner = torch.randint(2, (B, H, M), generator=generator)
    choices = Choices()
    choices.settle(Representatives(few, row, Windows(before=None, after=None, key_segment=inner)))
    other = Representatives(few, row.flip(-1), Windows(before=None, after=None, key_segment=1 - inner))
    settled = choices.again().settle(other)
    assert isinstance(settled, Representatives)
    assert isinstance(settled.plan, Windows)
    assert torch.equal(settled.row, row)
    assert settled.plan.key_segment is not None
    assert torch.equal(settled.plan.key_segment, inner)
