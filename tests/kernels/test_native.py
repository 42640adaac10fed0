"""The native kernel against the torch path, over random plans of every shape."""

import contextlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mapformers.core.plans import Dense, Union, Windows
from mapformers.core.scope import Scope
from mapformers.core.score import DistanceTerm
from mapformers.kernels.native.library import load, torch_kernels
from mapformers.kernels.run import run
from tests.tolerances import assert_close, assert_close_in_norm

Case = tuple[Union, list[Tensor], Scope, "Learned | None"]

pytestmark = pytest.mark.skipif(load().library is None, reason=f"no native kernel: {load().reason}")
FEW = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=2000)


class Learned(DistanceTerm):
    """A free table over clipped distances, so that its gradient is seen."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(values)

    def at(self, head: Tensor, distance: Tensor) -> Tensor:
        return self.values[head, distance.clamp(-5, 12) + 5]


@st.composite
def cases(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)) -> Case:
    """A plan with a null key, its leaves (q, k, v, null key), scope and score term."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 100_000)))
    dtype = draw(st.sampled_from(dtypes))
    batch, groups, per_group = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    heads = groups * per_group
    n = draw(st.one_of(st.integers(1, 40), st.integers(1, 700)))
    m = draw(st.one_of(st.just(n), st.integers(1, 200)))
    causal = draw(st.booleans())
    segments = draw(st.integers(1, 6))
    query_copies, key_copies = draw(st.integers(1, segments)), draw(st.sampled_from((1, 1, min(2, segments))))

    def named(rows: int, length: int, copies: int) -> Tensor | None:
        if segments == 1:
            return None
        order = torch.rand((batch, rows, length, segments), generator=generator).argsort(-1)[..., :copies]
        return order.masked_fill(torch.rand(order.shape, generator=generator) < 0.2, -1)

    after = 0 if causal else draw(st.one_of(st.none(), st.integers(0, 70)))
    weighted, hidden = draw(st.booleans()), draw(st.booleans())
    rounds = query_copies if segments > 1 else 1
    windows = Windows(
        before=draw(st.one_of(st.none(), st.integers(0, 70), st.integers(100, 300))),
        after=after,
        query_segment=named(heads, n, query_copies),
        key_segment=named(groups, m, key_copies),
        log_weight=torch.randn(batch, heads, n, rounds, generator=generator) if weighted else None,
        skip=draw(st.integers(0, 2)) if after == 0 else 0,
        key_is_seen=torch.rand((batch, groups, m), generator=generator) > 0.3 if hidden else None,
    )
    scope = Scope(
        causal=causal,
        key_is_real=torch.rand((batch, m), generator=generator) > 0.3 if draw(st.booleans()) else None,
        query_start=draw(st.integers(0, 3)),
    )
    dim, value_dim = (draw(st.sampled_from((1, 3, 16, 20, 64, 100, 128, 256))) for _ in range(2))

    def rows(count: int, length: int, size: int) -> Tensor:
        layout = draw(st.sampled_from(("heads first", "tokens first", "gaps", "transposed")))
        if layout == "tokens first":
            x = torch.randn(batch, length, count, size, generator=generator, dtype=dtype).transpose(1, 2)
        elif layout == "gaps":
            x = torch.randn(batch, count, 2 * length, size + 3, generator=generator, dtype=dtype)
            x = x[:, :, ::2, 1 : size + 1]
        elif layout == "transposed":
            x = torch.randn(batch, count, size, length, generator=generator, dtype=dtype).transpose(2, 3)
        else:
            x = torch.randn(batch, count, length, size, generator=generator, dtype=dtype)
        return x.requires_grad_()

    null = torch.randn(1, heads, 1, dim, generator=generator, dtype=dtype).requires_grad_()
    leaves = [rows(heads, n, dim), rows(groups, m, dim), rows(groups, m, value_dim), null]
    score = None
    if draw(st.booleans()):
        values = torch.randn(heads, 18, generator=generator, dtype=dtype)
        hidden_share = draw(st.sampled_from((0.0, 0.0, 0.5, 0.95)))  # of the distances: -inf
        score = Learned(
            values.masked_fill(torch.rand(values.shape, generator=generator) < hidden_share, float("-inf"))
        )
    parts = (windows, Dense(keys=null)) if draw(st.booleans()) else (windows,)
    return Union(parts), leaves, scope, score


def in_float64(case: Case) -> Case:
    """The same case, wider, with leaves of its own."""
    plan, leaves, scope, score = case
    q, k, v, null = (x.detach().double().requires_grad_() for x in leaves)
    parts = (plan.parts[0], Dense(keys=null))[: len(plan.parts)]
    return Union(parts), [q, k, v, null], scope, score and Learned(score.values.detach().double())


def compare(case: Case) -> None:
    """Outputs, log-sum-exps and all gradients against those of the torch path in float64."""
    outputs, slopes = [], []
    for name, (plan, leaves, scope, score) in {"native": case, "torch": in_float64(case)}.items():
        with torch_kernels() if name == "torch" else contextlib.nullcontext():
            attended = run(plan, *leaves[:3], scope, score)
        assert attended.kernel == name
        outputs.append(attended)
        seen = attended.lse.isfinite()
        generator = torch.Generator().manual_seed(2)
        grad, grad_lse = (
            torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)
            for x in (attended.output, attended.lse)
        )
        wanted = leaves[: 2 + len(plan.parts)] + ([score.values] if score else [])
        ends = (attended.output, torch.where(seen, attended.lse, 0.0))
        slopes.append(torch.autograd.grad(ends, wanted, (grad, torch.where(seen, grad_lse, 0.0))))
    native, reference = outputs
    assert torch.equal(native.lse.isfinite(), reference.lse.isfinite())
    seen = reference.lse.isfinite()
    tolerance = "decode" if native.output.dtype == torch.float32 else "parity"  # 1e-5 and 1e-9
    assert_close(native.output, reference.output, tolerance)
    stored = native.output.dtype  # as coarse as the inputs
    assert_close(native.lse[seen].to(stored), reference.lse[seen], tolerance)
    close = assert_close_in_norm if stored == torch.bfloat16 else assert_close
    for ours, theirs in zip(*slopes, strict=True):
        close(ours, theirs, "gradient")


@FEW
@given(cases())
def test_native_equals_torch(case: Case) -> None:
    compare(case)


@pytest.mark.slow
@MANY
@given(cases())
def test_native_equals_torch_over_two_thousand_plans(
    case: Case,
) -> None:
    compare(case)


@FEW
@given(cases(dtypes=(torch.bfloat16,)))
def test_native_bfloat16_equals_torch(case: Case) -> None:
    """Against float64 on the same rounded inputs."""
    compare(case)


def test_a_key_may_lie_at_neighbouring_places(generator: torch.Generator) -> None:
    """Few keys in several segments each: one row of k at two places of one micro-tile."""
    for m in (1, 2, 3):
        segments = torch.tensor([0, 1]).expand(1, 1, m, 2)
        named = torch.tensor([[0, 1], [1, 0]]).repeat(2, 1)[None, None, :m]  # one tile reaches both segments
        plan = Windows(before=None, after=None, query_segment=named, key_segment=segments)
        leaves = [
            torch.randn(1, 1, m, 16, generator=generator, dtype=torch.float64).requires_grad_()
            for _ in range(4)
        ]
        compare((Union((plan,)), [*leaves[:3], leaves[3][:, :, :1].detach()], Scope(), None))
