"""The other plan kinds against small dense sums, and the merge of parts."""

import pytest
import torch
from torch import Tensor

from mapformers.core.attended import Attended, merge
from mapformers.core.errors import MapformersError
from mapformers.core.plans import Dense, Features, Groups, Plan, Pooled, Union, WeightedSum, Windows
from mapformers.core.scope import Scope
from mapformers.kernels import dense
from mapformers.kernels.own_key import is_own_key
from mapformers.kernels.run import run, run_output
from mapformers.kernels.scan_tile import CHUNK
from tests.contract.measure import flops
from tests.tolerances import assert_close

B, H, D = 2, 3, 4
N = 70  # three blocks of the smallest size in dense_attend


@pytest.fixture
def qkv(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(B, H, N, D, generator=generator, dtype=torch.float64) for _ in range(3))
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def softmax_of(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    scores = (q @ k.transpose(-1, -2) / D**0.5).masked_fill(~allowed, float("-inf"))
    weights = torch.where(allowed.any(-1, keepdim=True), scores.softmax(-1), 0.0).nan_to_num(0.0)
    return weights @ v, scores.logsumexp(-1)


def triangle(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).tril()


@pytest.mark.parametrize("alive", [1, 100, 2**23])
def test_dense_in_blocks_is_dense(alive: int, qkv: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of blocks gives the same output, lse and gradients."""
    monkeypatch.setattr(dense, "SCORES_ALIVE", alive)
    q, k, v = qkv
    real = torch.arange(N).expand(B, -1) % 5 != 0
    allowed = triangle(N) & real[:, None, None]
    attended = run(Dense(), q, k, v, Scope(causal=True, key_is_real=real))
    output, lse = softmax_of(q, k, v, allowed)
    assert_close(attended.output, output, "parity")
    assert_close(attended.lse, lse, "parity")
    fast = torch.autograd.grad(attended.output.square().sum(), qkv)
    for a, b in zip(fast, torch.autograd.grad(output.square().sum(), qkv), strict=True):
        assert_close(a, b, "gradient")


def test_plain_dense_equals_masked_dense(qkv: tuple) -> None:
    q, k, v = qkv
    real = torch.ones(B, N, dtype=torch.bool)
    for causal in (False, True):
        plain, kernel = run_output(Dense(), q, k, v, Scope(causal=causal))
        masked, other = run_output(Dense(), q, k, v, Scope(causal=causal, key_is_real=real))
        assert_close(plain, masked, "parity")
        assert (kernel, other) == ("sdpa", "torch")


def test_dense_with_new_keys(qkv: tuple, generator: torch.Generator) -> None:
    q, k, v = qkv
    keys, values = torch.randn(2, 1, H, 5, D, generator=generator, dtype=torch.float64)
    everything = torch.ones(N, 5, dtype=torch.bool)
    mix = torch.randn(1, H, 5, N, generator=generator, dtype=torch.float64)
    for plan, expected in (
        (Dense(keys=keys, values=values), values),
        (Dense(keys=keys, value_mix=mix), mix @ v),
        (Dense(keys=keys), torch.zeros_like(values)),
    ):
        output, lse = softmax_of(q, keys, expected, everything)
        attended = run(plan, q, k, v, Scope())
        assert_close(attended.output, output, "parity")
        assert_close(attended.lse, lse, "parity")


def test_dense_may_be_narrowed(qkv: tuple, generator: torch.Generator) -> None:
    q, k, v = qkv
    allowed = torch.rand(B, 1, N, N, generator=generator) > 0.5
    attended = run(Dense(allowed=allowed), q, k, v, Scope(causal=True))
    assert_close(attended.output, softmax_of(q, k, v, allowed & triangle(N))[0], "parity")


@pytest.mark.parametrize("causal", [False, True])
def test_disjoint_parts_merge_to_one_softmax(causal: bool, qkv: tuple) -> None:
    """Windows over even keys, Groups over odd keys: together they are full attention, with its gradients."""
    q, k, v = qkv
    odd = torch.arange(N) % 2
    even = Windows(
        before=None,
        after=0 if causal else None,
        query_segment=torch.zeros(1, 1, N, dtype=torch.long),
        key_segment=torch.where(odd == 0, 0, -1)[None, None],
    )
    rows, places = torch.arange(N)[None, None, None], odd.nonzero().squeeze(-1)[None, None, None]
    parts = Union((even, Groups(query_index=rows, key_index=places)))
    scope = Scope(causal=causal)
    output, lse = softmax_of(q, k, v, triangle(N) if causal else torch.ones(N, N, dtype=torch.bool))
    attended = run(parts, q, k, v, scope)
    assert_close(attended.output, output, "parity")
    assert_close(attended.lse, lse, "parity")
    weight = torch.ones_like(output).cumsum(-1)
    fast = torch.autograd.grad((attended.output * weight).sum() + attended.lse.sum(), qkv)
    slow = torch.autograd.grad((output * weight).sum() + lse.sum(), qkv)
    for a, b in zip(fast, slow, strict=True):
        assert_close(a, b, "gradient")


def test_groups_with_empty_places_and_repeated_queries(qkv: tuple) -> None:
    """A query in two groups: one softmax over both, or the mean of both; empty places count for nothing."""
    q, k, v = qkv
    groups = {
        "query_index": torch.tensor([[[[0, 3, -1], [3, 5, 7]]]]),
        "key_index": torch.tensor([[[[0, 1, -1], [2, 6, 4]]]]),
    }
    allowed = torch.zeros(2, N, N, dtype=torch.bool)
    allowed[0, [0, 0, 3, 3], [0, 1, 0, 1]] = True
    for i in (3, 5, 7):
        allowed[1, i, [2, 6, 4]] = True
    visible = allowed & triangle(N)
    one = run(Groups(**groups), q, k, v, Scope(causal=True))
    assert_close(one.output, softmax_of(q, k, v, visible.any(0))[0], "parity")
    assert not one.output[:, :, 8:].any()
    assert (one.lse[:, :, 8:] == float("-inf")).all()
    mean = run(Groups(**groups, combine="mean"), q, k, v, Scope(causal=True)).output
    outputs = torch.stack([softmax_of(q, k, v, part)[0] for part in visible])
    count = visible.any(-1).sum(0).clamp(min=1)
    assert_close(mean, outputs.sum(0) / count[:, None], "parity")


def test_merging_nothing_gives_nothing() -> None:
    nothing = Attended(torch.zeros(B, H, 5, D), torch.full((B, H, 5), float("-inf")))
    merged = merge([nothing, nothing])
    assert not merged.output.any()
    assert (merged.lse == float("-inf")).all()


@pytest.mark.parametrize("n", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_features_equal_their_matrix(n: int, generator: torch.Generator) -> None:
    phi_q, phi_k = torch.rand(2, B, H, n, 6, generator=generator, dtype=torch.float64)
    v = torch.randn(B, H, n, D, generator=generator, dtype=torch.float64)
    documents = torch.arange(n).expand(B, -1) // 50
    real = torch.arange(n).expand(B, -1) % 7 != 3
    for scope in (Scope(), Scope(causal=True), Scope(causal=True, segments=documents, key_is_real=real)):
        kernel = (phi_q @ phi_k.transpose(-1, -2)) * scope.visible(n, n, v.device)
        total = kernel.sum(-1)
        attended = run(Features(phi_q, phi_k), v, v, v, scope)
        assert_close(attended.output, kernel @ v / total.masked_fill(total == 0, 1).unsqueeze(-1), "parity")
        assert_close(attended.lse, total.log(), "parity")


def test_work_stays_linear_however_unbalanced_the_segments(generator: torch.Generator) -> None:
    """The ranges of a row grow by at most M keys in all: one cluster of nearly everything costs no more."""
    n = 2048
    q, k, v = torch.randn(3, 1, 1, n, D, generator=generator)
    counted = {}
    for sizes in ((1.0,), (0.999, 0.001), (0.25,) * 4, (0.9, 0.05, 0.03, 0.02)):
        share = torch.tensor(sizes).cumsum(0)
        segment = torch.searchsorted(share, torch.rand(1, 1, n, generator=generator)).clamp(
            max=len(sizes) - 1
        )
        plan = Windows(before=64, query_segment=segment, key_segment=segment.flip(-1))
        counted[sizes] = flops(lambda plan=plan: run(plan, q, k, v, Scope(causal=True)).output)
    assert max(counted.values()) <= 1.5 * counted[(1.0,)], counted


@pytest.mark.parametrize(
    "plan",
    [Dense(), Windows(before=3), Groups(torch.zeros(1, 1, 1, 1).long(), torch.zeros(1, 1, 1, 1).long())],
    ids=lambda plan: type(plan).__name__,
)
def test_rows_that_see_nothing_are_zero(plan: Plan, qkv: tuple) -> None:
    q, k, v = qkv
    attended = run(plan, q, k, v, Scope(causal=True, key_is_real=torch.zeros(B, N, dtype=torch.bool)))
    assert not attended.output.any()
    assert (attended.lse == float("-inf")).all()
    (attended.output.sum() + attended.lse.exp().sum()).backward()
    assert all(x.grad is None or x.grad.isfinite().all() for x in qkv)


def test_looking_ahead_under_a_causal_scope_is_refused(qkv: tuple) -> None:
    with pytest.raises(MapformersError, match="windows: after must be 0 under a causal scope"):
        run(Windows(before=2, after=1), *qkv, Scope(causal=True))


@pytest.mark.parametrize("causal", [False, True])
def test_a_part_of_own_keys_needs_no_kernel(
    causal: bool, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Own keys far below the others, grouped heads: the short cut equals the general way, and is taken."""
    q = torch.randn(B, 4, N, D, generator=generator, dtype=torch.float64).requires_grad_()
    k, v = (torch.randn(B, 2, N, D, generator=generator, dtype=torch.float64).requires_grad_() for _ in "kv")
    below = torch.full((1, 1, N, 1), -3.0, dtype=torch.float64)
    plan = Union((Windows(before=4, skip=1), Windows(before=1, log_weight=below)))
    seen = []
    for taken in (True, False):
        if not taken:
            monkeypatch.setattr("mapformers.kernels.run.is_own_key", lambda *_: False)
        attended = run(plan, q, k, v, Scope(causal=causal))
        seen.append((attended.output, attended.lse))
        seen[-1] += torch.autograd.grad(attended.output.square().sum() + attended.lse.sum(), (q, k, v))
        assert attended.kernel in ("native", "torch")
    for short, general in zip(*seen, strict=True):
        assert_close(short, general, "parity")


def test_own_keys_with_padding_go_the_general_way() -> None:
    """Behind padding, one key back is not the own one."""
    q = torch.zeros(1, 1, 3, D)
    real = torch.tensor([[True, False, True]])
    plan = Windows(before=1)
    assert is_own_key(plan, Scope(causal=True), None, q, q)
    assert not is_own_key(plan, Scope(causal=True, key_is_real=real), None, q, q)
    assert not is_own_key(plan, Scope(causal=True, query_start=1), None, q[:, :, 1:], q)
    assert not is_own_key(Windows(before=1, skip=1), Scope(causal=True), None, q, q)
    assert not is_own_key(Windows(before=2), Scope(causal=True), None, q, q)


def pooled_plan() -> Pooled:
    """Five rows; every seventh key lies in none; the queries of row 1 see less than those of row 0."""
    index = torch.arange(N)
    generator = torch.Generator().manual_seed(2)
    row = torch.where(index % 7 == 3, -1, index % 5).expand(B, N)
    weights = torch.randn(2, B, H, N, generator=generator, dtype=torch.float64)
    end = torch.stack([1 + index // 16, index // 32])
    return Pooled(row, *weights, start=index.expand(B, N) // 40, end=end, count=5)


def test_pooled_rows_are_sums_of_keys(qkv: tuple) -> None:
    q, k, v = qkv
    plan = pooled_plan()
    rows = (plan.row[:, None] == torch.arange(5)[:, None]).double()[:, None]  # [B, 1, S, M]
    mean_k, mean_v = (rows @ (w.unsqueeze(-1) * x) for w, x in ((plan.key_weight, k), (plan.value_weight, v)))
    place = torch.arange(5)
    allowed = (place >= plan.start[..., None]) & (place < plan.end[..., None])  # [B, N, S]
    attended = run(plan, q, k, v, Scope(causal=True))
    output, lse = softmax_of(q, mean_k, mean_v, allowed[:, None].expand(B, H, N, 5))
    assert_close(attended.output, output, "parity")
    assert_close(attended.lse, lse, "parity")
    fast = torch.autograd.grad(attended.output.square().sum(), qkv)
    for a, b in zip(fast, torch.autograd.grad(output.square().sum(), qkv), strict=True):
        assert_close(a, b, "gradient")


def test_a_weighted_sum_has_a_softmax_for_each_part(qkv: tuple) -> None:
    q, k, v = qkv
    scope = Scope(causal=True)
    parts = (Windows(before=3), Dense(), pooled_plan())
    weights = torch.linspace(-1, 2, B * H * N * 3, dtype=torch.float64).view(B, H, N, 3)
    attended = run(WeightedSum(parts, weights), q, k, v, scope)
    alone = torch.stack([run(part, q, k, v, scope).output for part in parts], -2)
    assert_close(attended.output, (weights.unsqueeze(-1) * alone).sum(-2), "rounding")
    assert attended.lse.isnan().all()


def test_a_weighted_sum_is_no_part_of_a_union(qkv: tuple) -> None:
    part = WeightedSum((Windows(before=3),), torch.ones(B, H, N, 1, dtype=torch.float64))
    with pytest.raises(MapformersError, match="union: a part must have a log-sum-exp"):
        run(Union((Windows(before=1), part)), *qkv, Scope(causal=True))
