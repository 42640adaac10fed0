"""informer: by hand, exact where all rows attend, what is sampled, the threshold, the published form."""

import copy
import math

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.attention.choices import Choices
from mapformers.core.mechanism import Mechanism, Shape
from mapformers.core.plans import Features, WeightedSum
from mapformers.core.scope import Scope
from mapformers.kernels.run import run
from mapformers.mechanisms.prototypes.sampled_keys import SampledKeys
from mapformers.mechanisms.prototypes.threshold import Threshold
from tests.mechanisms.test_by_hand import weights_by_probing
from tests.tolerances import assert_close

H, T, Q = 1 / 2, 1 / 3, 1 / 4
TENTHS = [0.1, 0.2, 0.3, 0.4]


def drawn(seed: int, scope: Scope, n: int, factor: int, past: bool, heads: int = 1) -> Tensor:
    """[B, H, N, U] keys drawn; -1 = a query has fewer."""
    sampled = SampledKeys.of(torch.tensor(seed), scope, (n, n), factor, past)
    draws = (sampled.draw(heads, number) for number in range(sampled.draws))
    return torch.stack([index.masked_fill(~has, -1) for index, has in draws], -1)


def four(past: bool, **options: float | str) -> tuple[Mechanism, Tensor, Tensor]:
    """Queries 0, 1, 0, 1 and keys ln 1 .. ln 4 of one dimension: M is 0 for queries 0 and 2, above 0.2 for 1
    and 3 wherever a sample of two keys holds two different ones. The seed is the first that sees to it.
    """
    made = mf.mechanism("informer", factor=1, **options).bind(Shape(1, 1, 1)).double()
    keys = (drawn(seed, Scope(), 4, 1, past)[0, 0] for seed in range(100))
    differ = [all(len(set(rows[i].tolist())) == 2 for i in (1, 3)) for rows in keys]
    made.get_buffer("seed").fill_(differ.index(True))
    q = torch.tensor([0.0, 1, 0, 1]).double().view(1, 1, 4, 1)
    return made, q, torch.tensor([1.0, 2, 3, 4]).double().log().view(1, 1, 4, 1)


def assert_rows(made: Mechanism, q: Tensor, k: Tensor, causal: bool, rows: list[list[float]]) -> None:
    expected = torch.tensor(rows, dtype=torch.float64)
    assert_close(weights_by_probing(made, q, k, causal), expected, "parity", "plan")
    assert_close(mf.dense_weights(made, q, k, causal=causal)[0, 0], expected, "parity", "definition")


def test_by_hand() -> None:
    """ceil(ln 5) = 2 of 4 rows attend, with scores ln 1 .. ln 4."""
    made, q, k = four(False)
    assert_rows(made, q, k, False, [[Q] * 4, TENTHS, [Q] * 4, TENTHS])


def test_by_hand_the_sum() -> None:
    made, q, k = four(False, fill="cumsum")
    assert_rows(made, q, k, False, [[1] * 4, TENTHS, [1] * 4, TENTHS])


@pytest.mark.parametrize(("fill", "third"), [("mean", T), ("cumsum", 1)])
def test_by_hand_causal(fill: str, third: float) -> None:
    """Rows 1 and 3 exceed the threshold: scores ln 1, ln 2, then ln 1 .. ln 4. Others: mean or sum."""
    made, q, k = four(True, fill=fill, threshold=0.1)
    assert_rows(made, q, k, True, [[1, 0, 0, 0], [T, 2 * T, 0, 0], [third] * 3 + [0], TENTHS])


def test_by_hand_nobody_exceeds_the_threshold() -> None:
    made, q, k = four(True, threshold=9.0)
    assert_rows(made, q, k, True, [[1, 0, 0, 0], [H, H, 0, 0], [T, T, T, 0], [Q] * 4])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_exact_where_all_rows_attend(causal: bool, padded: bool, generator: torch.Generator) -> None:
    q, k, v = torch.randn(3, 2, 2, 23, 8, generator=generator, dtype=torch.float64)
    real = torch.arange(23).expand(2, -1) >= torch.tensor([[0], [7]])
    scope = {"key_is_real": real} if padded else {}
    made = mf.mechanism("informer", factor=8, threshold=-1.0)  # 8 ceil(ln 24) = 32 rows of 23
    got, full = (mf.attend(one, q, k, v, causal=causal, **scope) for one in (made, mf.mechanism("full")))
    rows = real if padded else torch.ones_like(real)
    assert_close(got.transpose(1, 2)[rows], full.transpose(1, 2)[rows], "parity")


def test_few_rows_attend_and_the_others_have_the_mean(generator: torch.Generator) -> None:
    """ceil(ln 51) = 4 of 50 rows: those of the largest M, counted out one by one."""
    q, k, v = torch.randn(3, 1, 2, 50, 8, generator=generator, dtype=torch.float64)
    made = mf.mechanism("informer", factor=1).bind(Shape(2, 2, 8)).double()
    got, full = mf.attend(made, q, k, v), mf.attend(mf.mechanism("full"), q, k, v)
    keys = drawn(int(made.get_buffer("seed")), Scope(), 50, 1, False, heads=2)[0]
    for head in range(2):
        spread = []
        for i in range(50):
            scores = [float(q[0, head, i] @ k[0, head, j]) for j in keys[head, i].tolist()]
            spread.append(max(scores) - sum(scores) / len(scores))
        best = sorted(range(50), key=lambda i: -spread[i])[:4]
        others = [i for i in range(50) if i not in best]
        assert_close(got[0, head, best], full[0, head, best], "parity")
        assert_close(got[0, head, others], v[0, head].mean(0).expand(46, -1), "parity")


def test_documents_do_not_compete(generator: torch.Generator) -> None:
    """In each document ceil(ln(1 + length)) rows attend, however loud another one is."""
    q, k = torch.randn(2, 1, 2, 60, 8, generator=generator, dtype=torch.float64)
    documents = torch.tensor([3] * 9 + [1] * 2 + [7] * 49)
    q[:, :, :9] *= 100
    made = mf.mechanism("informer", factor=1).bind(Shape(2, 2, 8)).double()
    plan = made.plan(q, k, Scope(segments=documents[None]))
    assert isinstance(plan, WeightedSum)
    attend = plan.weights[0, :, :, 0]  # [H, N]
    for name, rows in ((3, 3), (1, 2), (7, 4)):
        assert attend[:, documents == name].sum(1).tolist() == [rows, rows]


@pytest.mark.parametrize("past", [False, True])
def test_samples_are_real_of_the_document_and_when_causal_of_the_past(past: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    documents = torch.tensor([[5] * 13 + [0] * 1 + [2] * 26, [1] * 40])
    real = torch.rand(2, 40, generator=generator) > 0.3
    keys = drawn(3, Scope(causal=past, key_is_real=real, segments=documents), 40, 2, past, heads=3)
    index = torch.arange(40)[:, None]
    for b in range(2):
        for head in range(3):
            found = keys[b, head][real[b]]  # [n, U]
            assert (found >= 0).any(1).all()
            ok = real[b][found] & (documents[b][found] == documents[b][real[b]][:, None])
            ok = ok & (found <= index[real[b]]) if past else ok
            assert (ok | (found < 0)).all()


def test_samples_are_uniform_and_as_many_as_the_paper_says() -> None:
    """factor ceil(ln(1 + 20)) = 5 * 4 draws; 8,000 of the last query in 400 heads: 5 deviations."""
    keys = drawn(1, Scope(causal=True), 20, 5, True, heads=400)[0]  # [H, N, U]
    assert [(keys[0, i] >= 0).sum().item() for i in (0, 1, 5, 6, 18, 19)] == [5, 10, 10, 15, 15, 20]
    counts = keys[:, -1].flatten().bincount(minlength=20)
    assert abs(counts - 400).max() < 5 * math.sqrt(8000 / 20 * 19 / 20), counts


def test_a_prefix_and_left_padding_keep_the_samples() -> None:
    whole = drawn(7, Scope(causal=True), 60, 3, True, heads=2)
    prefix = drawn(7, Scope(causal=True), 31, 3, True, heads=2)
    assert torch.equal(whole[:, :, :31, : prefix.shape[-1]], prefix)
    real = torch.arange(70)[None] >= 10
    padded = drawn(7, Scope(causal=True, key_is_real=real), 70, 3, True, heads=2)[:, :, 10:]
    assert torch.equal(padded, torch.where(whole >= 0, whole + 10, -1))


def trained(steps: int, generator: torch.Generator, **options: float) -> tuple[Mechanism, float]:
    """A mechanism after some updates, and the share of 2 x 300 rows of two heads that attend afterwards."""
    made = mf.mechanism("informer", **options).bind(Shape(2, 2, 8))
    for _ in range(steps):
        q, k = torch.randn(2, 2, 2, 300, 8, generator=generator)
        made.observe(q, k, Scope(causal=True))
        made.update_centroids()
    plan = made.plan(*torch.randn(2, 2, 2, 300, 8, generator=generator), Scope(causal=True))
    assert isinstance(plan, WeightedSum)
    return made, float(plan.weights[..., 0].double().mean())


def test_training_moves_the_threshold_to_the_rows_of_the_paper(generator: torch.Generator) -> None:
    """2 ceil(ln 301) / 300 = 0.04 of the rows. Half to twice as many, from either side."""
    for start in (0.0, 50.0):
        before, after = (trained(steps, generator, factor=2, threshold=start)[1] for steps in (0, 20))
        assert not 0.02 < before < 0.08
        assert 0.02 < after < 0.08


def test_the_threshold_stands_still_outside_training_and_without_causality(
    generator: torch.Generator,
) -> None:
    layer = mf.attention("informer", 32, 4, causal=True).eval()
    x = torch.randn(2, 40, 32, generator=generator)
    layer(x)
    layer.update_centroids()
    assert (layer.mechanisms[0].threshold.value == 3.0).all()
    both_ways = mf.attention("informer", 32, 4).train()
    both_ways(x)
    both_ways.update_centroids()
    assert (both_ways.mechanisms[0].threshold.value == 3.0).all()
    layer.train()(x)
    layer.update_centroids()
    assert (layer.mechanisms[0].threshold.value != 3.0).all()


def test_the_threshold_by_hand() -> None:
    """Of 0 .. 4 the share 1/2 lies above 2, 1/4 above 3. First all the way, then half, then the rest."""
    threshold = Threshold(1, 7.0, decay=0.75)
    x = torch.arange(5.0)[None]
    for share, expected in ((0.5, 2.0), (0.25, 2.5), (0.25, 2.5 + 0.5 / 3), (1.0, (2.5 + 0.5 / 3) * 3 / 4)):
        threshold.observe(x, torch.tensor([share]))
        threshold.update()
        assert_close(threshold.value, torch.tensor([expected]), "rounding")
    threshold.observe(x[:, :0], torch.zeros(0))  # a forward of padding alone
    threshold.update()
    assert int(threshold.updates) == 4


def test_padding_does_not_move_the_threshold(generator: torch.Generator) -> None:
    q, k = torch.randn(2, 2, 2, 30, 8, generator=generator)
    real = torch.arange(30).expand(2, -1) < 20
    made = mf.mechanism("informer", factor=1).bind(Shape(2, 2, 8))
    louder = copy.deepcopy(made)
    made.observe(q, k, Scope(causal=True, key_is_real=real))
    q, k = (torch.where(real[:, None, :, None], x, 1e3 * x) for x in (q, k))
    louder.observe(q, k, Scope(causal=True, key_is_real=real))
    made.update_centroids(), louder.update_centroids()
    assert torch.equal(made.get_buffer("threshold.value"), louder.get_buffer("threshold.value"))


def test_a_narrow_model_keeps_a_wide_threshold() -> None:
    made = mf.mechanism("informer", threshold=1.001).bind(Shape(2, 2, 8)).bfloat16()
    assert_close(made.get_buffer("threshold.value"), torch.full((2,), 1.001), "rounding")


def test_the_published_form_leaks_refuses_and_cannot_decode(generator: torch.Generator) -> None:
    with pytest.raises(mf.MapformersError, match='variant="paper" leaks the future under causal=True'):
        mf.attention("informer(variant=paper)", 32, 4, causal=True)
    text = "informer(factor=1, variant=paper, allow_selection_leak=true)"
    with pytest.warns(UserWarning, match="allow_selection_leak"):
        layer = mf.attention(text, 32, 4, causal=True)
    with pytest.raises(mf.MapformersError, match="informer: cannot decode"):
        layer.init_state(1)
    x = torch.randn(1, 60, 32, generator=generator)
    changed = torch.cat([x[:, :40], 30 * x[:, 40:]], 1)
    moved = (layer(changed) - layer(x))[0, :40].abs().amax(-1) > 1e-3
    assert moved.any()
    with pytest.warns(UserWarning, match="allow_selection_leak"):
        weights = mf.dense_weights(
            mf.mechanism("informer", variant="paper", allow_selection_leak=True),
            x[None],
            x[None],
            causal=True,
        )
    assert not weights.triu(1).any()


def test_the_cost_is_n_log_n() -> None:
    made = mf.mechanism("informer").bind(Shape(8, 8, 64))
    for causal in (False, True):
        small, large = (made.cost(1, 8, n, 64, causal) for n in (1024, 65536))
        assert large.flops / small.flops < 64 * math.log(65536) / math.log(1024) * 1.1
        assert large.bytes / small.bytes == 64


def test_choices_keep_which_rows_attend() -> None:
    """A recomputation takes the weights of rows that were kept with the windows."""
    choices = Choices()
    made = mf.mechanism("informer", threshold=0.5).bind(Shape(1, 1, 4))
    plans = [made.plan(*torch.randn(2, 1, 1, 9, 4).unbind(0), Scope(causal=True)) for _ in range(2)]
    first = choices.settle(plans[0])
    again = choices.again().settle(plans[1])
    assert isinstance(first, WeightedSum)
    assert isinstance(again, WeightedSum)
    assert torch.equal(first.weights, again.weights)


def test_features_take_new_queries_over_earlier_keys(generator: torch.Generator) -> None:
    """What a plan from history asks of them."""
    phi_q, phi_k, v = torch.rand(3, 2, 3, 90, 4, generator=generator, dtype=torch.float64)
    whole = run(Features(phi_q, phi_k), phi_q, phi_k, v, Scope(causal=True))
    for start in (1, 64, 89):
        plan = Features(phi_q[:, :, start:], phi_k)
        part = run(plan, phi_q[:, :, start:], phi_k, v, Scope(causal=True, query_start=start))
        assert_close(part.output, whole.output[:, :, start:], "rounding")
        assert_close(part.lse, whole.lse[:, :, start:], "rounding")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 0}, "informer: factor must be 1 or more, got 0"),
        ({"decay": 1.0}, r"informer: decay must lie in \[0, 1\), got 1.0"),
        ({"threshold": float("nan")}, "informer: threshold must be finite, got nan"),
        ({"fill": "cummean"}, "informer: fill"),
        ({"variant": "official"}, "informer: variant"),
    ],
)
def test_bad_input(options: dict, message: str) -> None:
    with pytest.raises(mf.MapformersError, match=message):
        mf.mechanism("informer", **options)
