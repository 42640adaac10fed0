"""Adaptive span: the ramp by hand and as the paper writes it, gradients, native tiles of -inf, decoding."""

import math

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.core.plans import Windows
from mapformers.core.scope import Scope
from mapformers.core.score import ScoreTerm
from mapformers.kernels.native.library import load, torch_kernels
from mapformers.kernels.run import run
from tests.priors.distances import by_softmax, decodes_as_forward, drawn, matrix
from tests.tolerances import assert_close


def spans(text: str, *ratios: float, causal: bool = True) -> ScoreTerm:
    """A float64 term with these ratios."""
    term = mf.score(f"adaptive_span({text})", len(ratios), 8, causal=causal).double()
    with torch.no_grad():
        term.ratio.copy_(torch.tensor(ratios))
    return term


def test_by_hand() -> None:
    """Span 2, ramp 4: the shares of the distances 0 to 6 are 1, 1, 1, 3/4, 1/2, 1/4, 0, on both sides."""
    term = spans("limit=8, ramp=4", 0.25, 1.0)
    share = [1, 1, 1, 0.75, 0.5, 0.25, 0]
    found = matrix(term, 2, torch.arange(7))[0].exp()
    assert_close(found[0, 0], torch.tensor(share, dtype=torch.float64), "rounding")
    assert_close(found[0, :, 0], found[0, 0], "rounding")
    assert torch.equal(found[1], torch.ones(7, 7, dtype=torch.float64))


@pytest.mark.parametrize("causal", [True, False])
def test_it_equals_weights_times_ramp_normalised_again(causal: bool, generator: torch.Generator) -> None:
    """The paper's form; the band is as long as the term reaches, so what is left out is hidden anyway."""
    term = spans("limit=20, ramp=5", 0.01, 0.33, 0.99, causal=causal)  # no distance sits on a bend
    q, k, v = drawn(3, 41, generator)
    away = (torch.arange(41)[:, None] - torch.arange(41)).abs()
    ramp = torch.stack([((5 + 20 * z - away) / 5).clamp(0, 1) for z in term.ratio])
    scores = (q @ k.mT / 8**0.5).exp() * ramp
    scores = scores.tril() if causal else scores
    expected = scores / scores.sum(-1, keepdim=True) @ v
    for mechanism in (mf.mechanism("full"), mf.mechanism("band", window=24), mf.mechanism("band", window=50)):
        found = mf.attend(mechanism, q, k, v, causal=causal, score=term)
        assert_close(found, expected, "parity")
        for a, b in zip(
            torch.autograd.grad(found.square().sum(), [q, k, v, term.ratio], retain_graph=True),
            torch.autograd.grad(expected.square().sum(), [q, k, v, term.ratio], retain_graph=True),
            strict=True,
        ):
            assert_close(a, b, "gradient")


@pytest.mark.parametrize("causal", [True, False])
def test_the_whole_span_is_full_attention(causal: bool, generator: torch.Generator) -> None:
    q, k, v = drawn(2, 31, generator)
    found = mf.attend(mf.mechanism("full"), q, k, v, causal=causal, score=spans("limit=31", 1.0, 1.0))
    assert_close(found, by_softmax(q, k, v, torch.zeros(()), causal), "parity")


def test_only_the_distance_counts() -> None:
    term = spans("limit=64, ramp=7", 0.1, 0.5, 0.9)
    positions = torch.tensor([0, 3, 4, 40, 41, 300])
    assert torch.equal(matrix(term, 3, positions + 1000), matrix(term, 3, positions))


@pytest.mark.parametrize("causal", [True, False])
def test_positions_with_gaps_count_as_they_are(causal: bool, generator: torch.Generator) -> None:
    """Steps are shorter than distances: nothing may be left out by steps. Padding is hidden as ever."""
    term = spans("limit=20, ramp=5", 0.13, 0.41, causal=causal)
    positions = torch.randint(1, 4, (2, 60), generator=generator).cumsum(1)
    real = torch.rand(2, 60, generator=generator) > 0.2
    q, k, v = drawn(2, 60, generator)
    away = (positions[:, :, None] - positions[:, None]).abs()[:, None]
    ramp = ((5 + 20 * term.ratio.view(1, 2, 1, 1) - away) / 5).clamp(0, 1)
    weights = (q @ k.mT / 8**0.5).exp() * ramp * real[:, None, None]
    weights = weights.tril() if causal else weights
    total = weights.sum(-1, keepdim=True)
    expected = weights / torch.where(total > 0, total, 1.0) @ v
    for mechanism in (mf.mechanism("full"), mf.mechanism("band", window=59)):
        found = mf.attend(
            mechanism, q, k, v, causal=causal, score=term, positions=positions, key_is_real=real
        )
        assert_close(found, expected, "parity")


def test_gradient_of_the_span_is_a_difference_quotient(generator: torch.Generator) -> None:
    """Inside the ramp, through the softmax: central differences of second order."""
    q, k, v = (x.detach() for x in drawn(1, 40, generator))

    def value(ratio: float) -> Tensor:
        return mf.attend(
            mf.mechanism("full"), q, k, v, causal=True, score=spans("limit=16, ramp=6", ratio)
        ).sum()

    term = spans("limit=16, ramp=6", 0.407)  # 6.5 tokens: no distance sits on a bend
    slope = torch.autograd.grad(
        mf.attend(mf.mechanism("full"), q, k, v, causal=True, score=term).sum(), term.ratio
    )[0]
    near, far = ((value(0.407 + h) - value(0.407 - h)) / (2 * h) for h in (1e-4, 2e-4))
    assert_close(slope[0].float(), ((4 * near - far) / 3).float(), "gradient")
    assert slope.abs() > 1e-3


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_gradients_are_finite_on_every_bend(ratio: float, generator: torch.Generator) -> None:
    term = spans("limit=8, ramp=4", ratio)
    q, k, v = drawn(1, 30, generator)
    mf.attend(mf.mechanism("full"), q, k, v, causal=True, score=term).square().sum().backward()
    for leaf in (q, k, v, term.ratio):
        assert bool(leaf.grad.isfinite().all())


@pytest.mark.skipif(load().library is None, reason=f"no native kernel: {load().reason}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("before", [1, 70, 300, None])
def test_native_tiles_without_a_visible_key(
    before: int | None, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Ranges far longer than the spans: whole tiles of keys come first that the term hides; with skip=20
    a head whose ramp ends before sees nothing at all, in rows whose ranges are not empty.
    """
    found = []
    q, k, v, grad = (torch.randn(2, 3, 400, 8, generator=generator, dtype=dtype) for _ in range(4))
    for skip in (0, 20):
        for kernel in ("native", "torch"):
            term = spans("limit=200, ramp=9", 0.0, 0.1, 0.6).to(dtype)
            leaves = [x.clone().requires_grad_() for x in (q, k, v)]
            plan = Windows(before=before, after=0, skip=skip)
            if kernel == "native":
                attended = run(plan, *leaves, Scope(causal=True), term)
            else:
                with torch_kernels():
                    attended = run(plan, *leaves, Scope(causal=True), term)
            assert attended.kernel == kernel
            (attended.output * grad).sum().backward()
            seen = attended.lse.isfinite()
            assert skip == 0 or not seen[:, 0].any()
            slopes = [leaf.grad for leaf in leaves] + [term.ratio.grad]
            found.append([attended.output, seen, torch.where(seen, attended.lse, 0.0), *slopes])
        native, other = found[-2:]
        assert torch.equal(native[1], other[1])
        for a, b in zip(native[:1] + native[2:], other[:1] + other[2:], strict=True):
            assert_close(a, b, "gradient")
            assert bool(a.isfinite().all())


def test_loss_and_clamp() -> None:
    term = spans("limit=100, ramp=4, initial=0.5", 0.2, 0.4)
    (name, loss), *others = term.losses().items()
    assert (name, others) == ("span", [])
    assert_close(loss.float(), torch.tensor(30.0), "rounding")
    loss.backward()
    assert term.ratio.grad.tolist() == [50.0, 50.0]
    with torch.no_grad():
        term.ratio.copy_(torch.tensor([-0.3, 1.2]))
    term.after_step()
    assert term.ratio.tolist() == [0.0, 1.0]


def test_a_layer_returns_the_loss_in_training_and_clamps(generator: torch.Generator) -> None:
    layer = mf.attention("band(window=5)", 16, 2, causal=True, score="adaptive_span(limit=10, initial=0.5)")
    x = torch.randn(1, 9, 16, generator=generator)
    assert float(layer.attend(x).losses["span"].detach()) == 5.0
    with torch.no_grad():
        layer.score.ratio.fill_(3.0)
    layer.update_centroids()
    assert layer.score.ratio.tolist() == [1.0, 1.0]
    assert "span" not in layer.eval().attend(x).losses


def test_reach() -> None:
    """The first distance that is never seen is the end of the longest ramp."""
    term = spans("limit=20, ramp=5", 0.13, 0.02)  # 2.6 tokens: distances up to 7 have a share
    assert term.reach() == math.ceil(2.6) + 5
    share = matrix(term, 2, torch.arange(12))[0, 0, 0].exp()
    assert share[7] > 0
    assert share[8] == 0


@pytest.mark.parametrize("mechanism", ["full", "band(window=9)"])
def test_decode(mechanism: str, generator: torch.Generator) -> None:
    text = "adaptive_span(limit=8, ramp=3, initial=0.4)"
    step, whole = decodes_as_forward(mechanism, text, generator)
    assert_close(step, whole, "decode")


@pytest.mark.parametrize("options", ["limit=0", "ramp=0", "initial=1.5", "initial=-0.1"])
def test_bad_options_are_refused(options: str) -> None:
    with pytest.raises(mf.MapformersError, match=r"adaptive_span: .*; use"):
        mf.score(f"adaptive_span({options})", 2, 8)
