"""Windows plans of any shape against a loop over queries and keys that follows the definition."""

import math
from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mapformers.core.plans import Windows
from mapformers.core.scope import Scope
from mapformers.kernels.ranges import range_attend
from mapformers.kernels.run import run
from mapformers.kernels.windows import ranges_of
from tests.tolerances import assert_close

BATCH, HEADS, DIM = 2, 2, 4


@dataclass(frozen=True)
class Example:
    plan: Windows
    scope: Scope
    n: int
    m: int


def names_of_segments(
    generator: torch.Generator, heads: int, length: int, copies: int, segments: int
) -> Tensor:
    """[B, heads, length, copies] distinct segments per token, ragged, some negative."""
    order = torch.rand((BATCH, heads, length, segments), generator=generator).argsort(-1)
    chosen = order[..., :copies].clone()
    chosen[torch.rand(chosen.shape, generator=generator) < 0.2] = -1
    return chosen.square() // max(1, segments - 1) if copies == 1 and segments > 2 else chosen


@st.composite
def examples(draw: st.DrawFn) -> Example:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    n = draw(st.one_of(st.integers(1, 9), st.integers(60, 70), st.integers(1, 200)))
    m = draw(st.one_of(st.just(n), st.integers(1, 200)))
    causal = draw(st.booleans())
    before = draw(st.one_of(st.none(), st.integers(0, 5), st.integers(60, 70)))
    after = 0 if causal else draw(st.one_of(st.none(), st.integers(0, 5), st.just(64)))
    segments = draw(st.integers(1, 5))
    named = draw(st.booleans())
    groups = draw(st.sampled_from((1, HEADS)))
    query_copies = draw(st.integers(1, segments)) if named else 1
    key_copies = draw(st.integers(1, segments)) if named else 1
    hidden = torch.rand((BATCH, draw(st.sampled_from((1, HEADS))), m), generator=generator) < 0.3
    plan = Windows(
        before=before,
        after=after,
        skip=draw(st.integers(0, 3)) if after == 0 else 0,
        key_is_seen=~hidden if draw(st.booleans()) else None,
        query_segment=names_of_segments(generator, HEADS, n, query_copies, segments) if named else None,
        key_segment=names_of_segments(generator, groups, m, key_copies, segments) if named else None,
    )
    real = torch.rand((BATCH, m), generator=generator) > 0.3 if draw(st.booleans()) else None
    packed = draw(st.booleans())
    scope = Scope(
        causal=causal,
        key_is_real=real,
        segments=torch.randint(0, 3, (BATCH, n), generator=generator) if packed else None,
        key_segments=torch.randint(0, 3, (BATCH, m), generator=generator) if packed else None,
        query_start=draw(st.integers(0, 3)),
    )
    return Example(plan, scope, n, m)


def seen_keys(example: Example, b: int, h: int, i: int) -> list[int]:
    """Keys of query i, one entry for each segment that both name, by the words of `Windows`."""
    plan, scope = example.plan, example.scope
    here = scope.query_start + i
    keys = []
    for segment in [0] if plan.query_segment is None else plan.query_segment[b, h, i].tolist():
        if segment < 0:
            continue
        up_to, behind = [], []
        for j in range(example.m):
            if scope.key_is_real is not None and not scope.key_is_real[b, j]:
                continue
            if scope.segments is not None and scope.segments[b, i] != scope.key_segments[b, j]:
                continue
            if plan.key_segment is not None:
                group = h * plan.key_segment.shape[1] // HEADS
                if segment not in plan.key_segment[b, group, j].tolist():
                    continue
            (up_to if j <= here else behind).append(j)
        up_to = up_to if plan.before is None else up_to[max(0, len(up_to) - plan.before) :]
        near = up_to[: max(0, len(up_to) - plan.skip)] + (
            behind if plan.after is None else behind[: plan.after]
        )
        keys += [j for j in near if plan.key_is_seen is None or plan.key_is_seen[b, h % groups_of(plan), j]]
    return keys


def groups_of(plan: Windows) -> int:
    return 1 if plan.key_is_seen is None else plan.key_is_seen.shape[1]


def by_loops(example: Example, q: Tensor, k: Tensor, v: Tensor, rows: list[int]) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of some queries."""
    output = torch.zeros(BATCH, HEADS, len(rows), DIM, dtype=q.dtype)
    lse = torch.full((BATCH, HEADS, len(rows)), -math.inf, dtype=q.dtype)
    for b in range(BATCH):
        for h in range(HEADS):
            for place, i in enumerate(rows):
                keys = seen_keys(example, b, h, i)
                if keys:
                    scores = k[b, h, keys] @ q[b, h, i] / math.sqrt(DIM)
                    output[b, h, place] = scores.softmax(0) @ v[b, h, keys]
                    lse[b, h, place] = scores.logsumexp(0)
    return output, lse


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(examples())
def test_windows_equal_the_loops(example: Example) -> None:
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(BATCH, HEADS, example.n, DIM, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, BATCH, HEADS, example.m, DIM, generator=generator, dtype=torch.float64)
    attended = run(example.plan, q, k, v, example.scope)
    rows = sorted({0, example.n - 1, *torch.randint(0, example.n, (5,), generator=generator).tolist()})
    output, lse = by_loops(example, q, k, v, rows)
    assert_close(attended.output[:, :, rows], output, "parity", str(example))
    assert_close(attended.lse[:, :, rows], lse, "parity", str(example))


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(examples())
def test_ranges_are_the_normal_form(example: Example) -> None:
    """Orders are permutations; ranges lie inside the keys and never step back inside a segment."""
    ranges = ranges_of(example.plan, example.scope, example.n, example.m, torch.device("cpu"))
    places = example.m * ranges.key_copies
    for order, count in ((ranges.query_order, example.n), (ranges.key_order, places)):
        if order is not None:
            assert torch.equal(order.sort(-1).values, torch.arange(count).expand_as(order))
    empty = ranges.start >= ranges.end
    assert (ranges.start >= 0).all()
    assert (ranges.end[~empty] <= places).all()
    starts = torch.where(empty, -1, ranges.start)
    ends = torch.where(empty, -1, ranges.end)
    assert (starts.cummax(-1).values[~empty] == starts[~empty]).all()
    assert (ends.cummax(-1).values[~empty] == ends[~empty]).all()


def test_rounds_are_one_softmax(generator: torch.Generator) -> None:
    """A query has its place in one round for each segment that it names, and merging them is one softmax."""
    segments = torch.tensor([[[[0, 1], [1, 0], [0, -1]]]])
    keys = torch.tensor([[[[0], [1], [1]]]])
    plan = Windows(before=2, query_segment=segments, key_segment=keys)
    scope = Scope(causal=True)
    q, k, v = torch.randn(3, 1, 1, 3, DIM, generator=generator, dtype=torch.float64)
    ranges = ranges_of(plan, scope, 3, 3, q.device)
    assert ranges.rounds == 2
    seen = (ranges.end - ranges.start).scatter(3, ranges.query_order, ranges.end - ranges.start)
    assert seen[0, 0].tolist() == [[1, 1, 1], [0, 1, 0]]
    attended = range_attend(ranges, q, k, v, scope)
    assert_close(attended.output[0, 0, 0], v[0, 0, 0], "parity")
    weights = ((q[0, 0, 1] @ k[0, 0, :2].T) / 2).softmax(0)
    assert_close(attended.output[0, 0, 1], weights @ v[0, 0, :2], "parity")
    assert_close(attended.output[0, 0, 2], v[0, 0, 0], "parity")


def test_a_log_weight_shifts_a_segment(generator: torch.Generator) -> None:
    segments, keys = torch.tensor([[[[0, 1], [0, 1]]]]), torch.tensor([[[[0], [1]]]])
    weight = torch.tensor([[[[0.0, 0.0], [0.5, -2.0]]]], dtype=torch.float64)
    plan = Windows(before=1, query_segment=segments, key_segment=keys, log_weight=weight)
    q, k, v = torch.randn(3, 1, 1, 2, DIM, generator=generator, dtype=torch.float64)
    scores = (q[0, 0, 1] @ k[0, 0].T) / 2 + weight[0, 0, 1]
    attended = run(plan, q, k, v, Scope(causal=True))
    assert_close(attended.output[0, 0, 1], scores.softmax(0) @ v[0, 0], "parity")
    assert_close(attended.lse[0, 0, 1], scores.logsumexp(0), "parity")
