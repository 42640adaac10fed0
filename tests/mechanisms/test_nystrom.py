"""nystrom: by hand, exact where every token is a landmark, rows of a batch alone, the convolution."""

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.core.mechanism import Mechanism, Shape
from mapformers.mechanisms.low_rank.nystrom import pseudo_inverse
from tests.mechanisms.test_by_hand import weights_by_probing
from tests.tolerances import assert_close


def set_taps(made: Mechanism, taps: Tensor) -> None:
    """taps [H, T]."""
    with torch.no_grad():
        made.get_parameter("taps").copy_(taps)


def test_by_hand() -> None:
    """One dimension, two landmarks. All queries are 0, so F, A and B hold equal weights: A is 1/2 everywhere,
    its pseudo-inverse is A itself, and F A B is 1/4 everywhere. The taps 2, 3, 5 lie on the diagonals.
    """
    q = torch.zeros(1, 1, 4, 1, dtype=torch.float64)
    k = torch.randn(1, 1, 4, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = mf.mechanism("nystrom", landmarks=2, iterations=0, kernel=3).bind(Shape(1, 1, 1)).double()
    set_taps(made, torch.tensor([[2.0, 3.0, 5.0]]))
    taps = [[3, 5, 0, 0], [2, 3, 5, 0], [0, 2, 3, 5], [0, 0, 2, 3]]
    expected = torch.tensor(taps, dtype=torch.float64) + 1 / 4
    assert_close(weights_by_probing(made, q, k * 0, False), expected, "parity", "plan")
    assert_close(mf.dense_weights(made, q, k * 0)[0, 0], expected, "parity", "definition")


def test_by_hand_over_padding() -> None:
    """Token 1 is padding: the three real ones make stretches of two and one, and are neighbours."""
    q = torch.zeros(1, 1, 4, 1, dtype=torch.float64)
    made = mf.mechanism("nystrom", landmarks=2, iterations=0, kernel=3).bind(Shape(1, 1, 1)).double()
    set_taps(made, torch.tensor([[2.0, 3.0, 5.0]]))
    taps = [[3, 0, 5, 0], [3, 0, 5, 0], [2, 0, 3, 5], [0, 0, 2, 3]]
    third = torch.tensor([1 / 3, 0, 1 / 3, 1 / 3], dtype=torch.float64)
    real = torch.tensor([[True, False, True, True]])
    got = weights_by_probing(made, q, q, False, key_is_real=real)
    assert_close(got, torch.tensor(taps, dtype=torch.float64) + third, "parity")


@pytest.mark.parametrize("padded", [False, True])
def test_exact_where_every_token_is_a_landmark(padded: bool, generator: torch.Generator) -> None:
    q, k, v = torch.randn(3, 2, 2, 11, 16, generator=generator, dtype=torch.float64)
    real = torch.arange(11).expand(2, -1) >= torch.tensor([[0], [4]]) if padded else None
    nystrom = mf.mechanism("nystrom", iterations=0, kernel=0, short="take_all")
    got, full = (mf.attend(made, q, k, v, key_is_real=real) for made in (nystrom, mf.mechanism("full")))
    assert_close(got, full, "parity")


@pytest.mark.parametrize("landmarks", [2, 3, 5])
def test_exact_inverse_in_wide_types(landmarks: int, generator: torch.Generator) -> None:
    """The contract suite also narrows types, which this inverse does not bear."""
    q, k, v = torch.randn(3, 2, 2, 23, 16, generator=generator, dtype=torch.float64)
    made = mf.mechanism("nystrom", landmarks=landmarks, iterations=0, kernel=3).bind(Shape(2, 2, 16)).double()
    real = torch.arange(23).expand(2, -1) % 5 != torch.tensor([[5], [2]])
    got, weights = mf.attend(made, q, k, v, key_is_real=real), mf.dense_weights(made, q, k, key_is_real=real)
    assert_close(got, weights @ v, "parity")


def test_many_steps_reach_the_exact_inverse(generator: torch.Generator) -> None:
    a = torch.randn(3, 6, 6, generator=generator, dtype=torch.float64).softmax(-1)
    assert_close(pseudo_inverse(a, 40), torch.linalg.pinv(a), "parity")


def test_explicit_formula(generator: torch.Generator) -> None:
    """Eight tokens, landmarks of two tokens each, six steps as the paper writes them."""
    q, k, v = torch.randn(3, 8, 4, generator=generator, dtype=torch.float64)
    marks_q, marks_k = q.view(4, 2, 4).mean(1), k.view(4, 2, 4).mean(1)
    first, a, last = ((x @ y.T / 2).softmax(-1) for x, y in ((q, marks_k), (marks_q, marks_k), (marks_q, k)))
    z, one = a.T / (a.abs().sum(0).max() * a.abs().sum(1).max()), torch.eye(4, dtype=torch.float64)
    for _ in range(6):
        z = 0.25 * z @ (13 * one - a @ z @ (15 * one - a @ z @ (7 * one - a @ z)))
    made = mf.mechanism("nystrom", landmarks=4, kernel=0)
    got = mf.attend(made, *(x[None, None] for x in (q, k, v)))
    assert_close(got[0, 0], first @ z @ (last @ v), "parity")


def test_rows_and_heads_do_not_know_each_other(generator: torch.Generator) -> None:
    """The published start of the inverse takes one maximum over batch and heads; a neighbour moves it."""
    q, k, v = torch.randn(3, 2, 2, 20, 4, generator=generator, dtype=torch.float64)
    made = mf.mechanism("nystrom", landmarks=4, kernel=0, iterations=3)
    before = mf.attend(made, q, k, v)[0, 0]
    k = k.clone()
    k[1] *= 20
    k[:, 1] *= 20
    assert torch.equal(mf.attend(made, q, k, v)[0, 0], before)


def test_convolution_alone_is_that_of_torch(generator: torch.Generator) -> None:
    """What is left without attention, against conv1d over each head's values."""
    q, k, v = torch.randn(3, 2, 3, 19, 4, generator=generator, dtype=torch.float64)
    made = mf.mechanism("nystrom", landmarks=4, kernel=5).bind(Shape(3, 3, 4)).double()
    without = mf.mechanism("nystrom", landmarks=4, kernel=0)
    for head in range(3):
        weight = made.get_parameter("taps")[head].view(1, 1, 5).expand(4, 1, 5)
        expected = torch.conv1d(v[:, head].mT, weight, padding=2, groups=4).mT
        got = (mf.attend(made, q, k, v) - mf.attend(without, q, k, v))[:, head]
        assert_close(got, expected, "parity")


def test_causal_is_refused_with_the_reason() -> None:
    with pytest.raises(mf.MapformersError, match=r"nystrom: causal .* means over later tokens"):
        mf.attention("nystrom", 32, 4, causal=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"landmarks": 0}, "nystrom: landmarks must be 1 or more, got 0"),
        ({"iterations": -1}, "nystrom: iterations must be 0 or more, got -1"),
        ({"kernel": 4}, "nystrom: kernel must be odd, or 0 for none, got 4"),
        ({"kernel": -3}, "nystrom: kernel must be odd, or 0 for none, got -3"),
    ],
)
def test_bad_input(options: dict[str, int], message: str) -> None:
    with pytest.raises(mf.MapformersError, match=message):
        mf.mechanism("nystrom", **options)


def test_more_landmarks_than_keys_are_refused_unless_all_are_taken(generator: torch.Generator) -> None:
    x = torch.randn(1, 2, 5, 4, generator=generator)
    with pytest.raises(
        mf.MapformersError, match="nystrom: landmarks must be at most the number of keys 5, got 6"
    ):
        mf.attend(mf.mechanism("nystrom", landmarks=6), x, x, x)
    assert mf.attend(mf.mechanism("nystrom", landmarks=6, short="take_all"), x, x, x).isfinite().all()
    with pytest.raises(mf.MapformersError, match="nystrom: short must be one of"):
        mf.mechanism("nystrom", landmarks=6, short="pad")
