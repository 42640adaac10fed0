"""cost() is the truth: held against the dense twin, against counted FLOPs, and against memory."""

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.core.mechanism import Mechanism, Shape
from mapformers.kernels import dense
from tests.contract import cases
from tests.contract.measure import exponent, flops, peak_bytes
from tests.tolerances import assert_close

HEADS, DIM = 2, 16
# The torch path multiplies whole tiles of at most b = 128 rows. A block of b queries needs a stretch of b + W
# keys, which touches at most W / b + 3 tiles, so a band of W = 128 counts at most 4 times its visible pairs.
MOST = 4.0
# By growth; long enough that borders do not count.
LENGTHS = {1.0: (2048, 8192), 2.0: (256, 1024)}
PATTERNS = [
    (text, causal)
    for text, causal in cases.with_directions()
    if not cases.by_content(text) and not text.startswith(cases.POOLING)
]
SPECS = [
    (*cases.COSTS[name], causal)
    for name in cases.COSTS
    for causal in cases.directions_of(cases.COSTS[name][0])
]


def run(mechanism: Mechanism, n: int, causal: bool, padded: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, n, DIM, generator=generator, requires_grad=True) for _ in range(3))
    real = torch.ones(1, n, dtype=torch.bool) if padded else None
    return mf.attend(mechanism, q, k, v, causal=causal, key_is_real=real)


def made(text: str) -> Mechanism:
    return cases.build(text).bind(Shape(HEADS, HEADS, DIM))


@pytest.mark.parametrize(("text", "causal"), PATTERNS)
def test_cost_counts_the_pairs_that_the_definition_shows(text: str, causal: bool) -> None:
    """Where the pattern does not depend on the data: exact at every length. Full counts hidden pairs too."""
    for n in (1, 2, 6, 17, 40, 71, 131):
        generator = torch.Generator().manual_seed(n)
        mechanism = cases.fresh(text)
        q, k, _ = cases.draw_qkv(n, generator, batch=1)
        shown = int((mf.dense_weights(mechanism, q, k, causal=causal) != 0).sum())
        if cases.COSTS[mechanism.card.name][1] == "all":
            shown = cases.HEADS * n * n
        cost = mechanism.cost(1, cases.HEADS, n, cases.HEAD_DIM, causal)
        assert cost.flops == 4 * cases.HEAD_DIM * shown, f"n={n}"


@pytest.mark.slow
@pytest.mark.parametrize(("text", "rule", "growth", "causal"), SPECS)
def test_counted_flops_lie_close_above_the_cost(text: str, rule: str, growth: float, causal: bool) -> None:
    mechanism, counts = made(text), []
    for n in LENGTHS[growth]:
        counted = flops(lambda n=n: run(mechanism, n, causal))
        cost = mechanism.cost(1, HEADS, n, DIM, causal).flops
        if rule in ("counted", "all"):
            assert counted == cost
        else:
            assert cost <= counted <= MOST * cost, f"{counted / cost:.2f} times"
        counts.append(counted)
    assert abs(exponent(*counts, 4) - growth) < 0.1, counts


@pytest.mark.parametrize(
    "text",
    [t for t in cases.ALL if cases.by_content(t) and "paper" not in t and not t.startswith(cases.POOLING)],
)
def test_the_cost_of_data_dependent_patterns_is_a_bound(text: str) -> None:
    for causal in (False, True):
        for n in (1, 17, 131):
            generator = torch.Generator().manual_seed(n)
            mechanism = cases.bound(text, generator)
            q, k, _ = cases.draw_qkv(n, generator, batch=1)
            shown = int((mf.dense_weights(mechanism, q, cases.share(text, q, k), causal=causal) != 0).sum())
            cost = mechanism.cost(1, cases.HEADS, n, cases.HEAD_DIM, causal)
            assert cost.flops >= 4 * cases.HEAD_DIM * shown


@pytest.mark.slow
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("text", "rule", "growth", "causal"), SPECS)
def test_memory_grows_linearly(
    text: str, rule: str, growth: float, causal: bool, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward. Full too: its scores are computed again, a block of queries at a time."""
    monkeypatch.setattr(dense, "SCORES_ALIVE", 2**14)
    mechanism = made(text)
    small, large = (peak_bytes(lambda n=n: run(mechanism, n, causal, padded)) for n in LENGTHS[growth])
    assert exponent(small, large, 4) < 1.1, (small, large)


@pytest.mark.parametrize(("text", "rule", "growth", "causal"), SPECS)
def test_stated_bytes_grow_like_the_memory(text: str, rule: str, growth: float, causal: bool) -> None:
    mechanism = made(text)
    small, large = (mechanism.cost(1, HEADS, n, DIM, causal).bytes for n in (1024, 4096))
    assert small > 0
    assert abs(exponent(small, large, 4) - 1) < 0.1


@pytest.mark.parametrize("name", cases.COSTS)
def test_cost_is_proportional_to_batch_and_heads(name: str) -> None:
    mechanism = made(cases.COSTS[name][0])
    causal = mechanism.card.causal == "strict"
    one, six = mechanism.cost(1, 1, 100, DIM, causal), mechanism.cost(2, 3, 100, DIM, causal)
    assert_close(torch.tensor(six), 6 * torch.tensor(one), "rounding")
