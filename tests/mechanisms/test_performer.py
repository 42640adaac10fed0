"""Performer: by hand, close to softmax for small inputs, later keys change nothing before them, redrawing."""

import math

import pytest
import torch

import mapformers as mf
from mapformers.core.errors import MapformersError
from mapformers.core.mechanism import Shape
from mapformers.mechanisms.linear.performer import Performer, PerformerConfig
from tests.tolerances import assert_close


def performer(heads: int = 2, dim: int = 4, seed: int = 0, **options: object) -> Performer:
    made = Performer(PerformerConfig(**options))  # type: ignore[arg-type]
    made.bind(Shape(heads, heads, dim), torch.Generator().manual_seed(seed))
    return made


@pytest.mark.parametrize("kernel", ["positive", "two_sided", "relu"])
def test_two_tokens_by_hand(kernel: str) -> None:
    """D = 1 and one row w = 2: x' = x."""
    made = performer(1, 1, features=1, kernel=kernel).double()
    made.random.rows.fill_(2.0)
    q, k = (torch.tensor(x, dtype=torch.float64).view(1, 1, 2, 1) for x in ([0.0, 0.5], [1.0, -0.25]))
    feature = {
        "positive": lambda x: [math.exp(2 * x - x * x / 2)],
        "two_sided": lambda x: [math.exp(s * 2 * x - x * x / 2) for s in (1, -1)],
        "relu": lambda x: [max(2 * x, 0) + 0.001],
    }[kernel]

    def weight(i: float, j: float) -> float:
        return sum(a * b for a, b in zip(feature(i), feature(j), strict=True))

    first, second = weight(0.5, 1.0), weight(0.5, -0.25)
    row = [first / (first + second), second / (first + second)]
    expected = torch.tensor([[1.0, 0.0], row], dtype=torch.float64)
    assert_close(mf.dense_weights(made, q, k, causal=True)[0, 0], expected, "parity")
    v = torch.tensor([1.0, 3.0], dtype=torch.float64).view(1, 1, 2, 1)
    output = mf.attend(made, q, k, v, causal=True).flatten()
    assert_close(output, (expected @ v[0, 0]).flatten(), "parity")


@pytest.mark.parametrize(("kernel", "causal"), [("positive", False), ("two_sided", True)])
def test_many_features_come_close_to_softmax(kernel: str, causal: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    q, k = (0.3 * torch.randn(1, 2, 32, 16, generator=generator) for _ in range(2))
    exact = mf.dense_weights(mf.mechanism("full"), q, k, causal=causal)
    errors = []
    for features in (64, 4096):
        found = mf.dense_weights(performer(dim=16, features=features, kernel=kernel), q, k, causal=causal)
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[1] < 0.05
    assert errors[1] < errors[0] / 4  # the rate is 1/8


@pytest.mark.parametrize("kernel", ["positive", "two_sided", "relu"])
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_resampled_later_keys_change_rounding_only(kernel: str, size: float) -> None:
    """The public codes change by more than a tenth here: their stabiliser is a maximum over all keys."""
    n, past = 150, 70
    generator = torch.Generator().manual_seed(0)
    q, k, v, later = (torch.randn(1, 2, n, 8, generator=generator, dtype=torch.float64) for _ in range(4))
    made = performer(dim=8, features=32, kernel=kernel).double()
    other = torch.cat([k[:, :, :past], size * later[:, :, past:]], 2)
    before, after = (mf.attend(made, q, keys, v, causal=True)[:, :, :past] for keys in (k, other))
    assert_close(after, before, "rounding")


@pytest.mark.parametrize("kernel", ["positive", "two_sided", "relu"])
def test_large_inputs_stay_finite(kernel: str) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 40, 8, generator=generator) for _ in range(3))
    for causal in (False, True):
        inputs = [(1e3 * x).requires_grad_() for x in (q, k)]
        output = mf.attend(performer(dim=8, features=16, kernel=kernel), *inputs, v, causal=causal)
        assert output.isfinite().all()
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(output.sum(), inputs))


def test_rows_are_drawn_anew_from_seed_and_count() -> None:
    made, again = (performer(features=8, redraw=3) for _ in range(2))
    first = made.random.rows.clone()
    seen = []
    for _ in range(6):
        made.update_centroids()
        seen.append(made.random.rows.clone())
    assert torch.equal(seen[1], first)
    assert not torch.equal(seen[2], first)
    assert torch.equal(seen[4], seen[2])
    assert not torch.equal(seen[5], seen[2])

    for _ in range(2):
        again.update_centroids()
    resumed = performer(features=8, redraw=3, seed=9)
    resumed.load_state_dict(again.state_dict())
    resumed.update_centroids()
    assert torch.equal(resumed.random.rows, seen[2])


def test_redraw_zero_keeps_the_rows() -> None:
    made = performer(features=8, redraw=0)
    first = made.random.rows.clone()
    for _ in range(1001):
        made.update_centroids()
    assert torch.equal(made.random.rows, first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 0}, "performer: features must be 1 or more, got 0"),
        ({"features": -3}, "performer: features must be 1 or more, got -3"),
        ({"redraw": -1}, "performer: redraw must be 0 or more, got -1"),
        ({"kernel": "softmax"}, "performer: kernel is unknown"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(MapformersError, match=message):
        PerformerConfig(**options)  # type: ignore[arg-type]
