"""csalr: by hand, the explicit formula, rows that sum to one half."""

import pytest
import torch

import mapformers as mf
from tests.mechanisms.test_by_hand import weights_by_probing
from tests.tolerances import assert_close


def test_by_hand() -> None:
    """Two landmarks, equal scores: A + I = [[3, 1], [1, 3]] / 2, its inverse [[3, -1], [-1, 3]] / 4: its
    rows sum to 1/2; half of an average over four keys is 1/8.
    """
    x = torch.zeros(1, 1, 4, 2, dtype=torch.float64)
    made = mf.mechanism("csalr", landmarks=2)
    expected = torch.full((4, 4), 1 / 8, dtype=torch.float64)
    assert_close(weights_by_probing(made, x, x, False), expected, "parity", "plan")
    assert_close(mf.dense_weights(made, x, x)[0, 0], expected, "parity", "definition")


def test_by_hand_with_scores() -> None:
    """Every token is a landmark. Scores [[ln 3, 0], [0, ln 3]]: A = [[3, 1], [1, 3]] / 4, A + I =
    [[7, 1], [1, 7]] / 4, its inverse [[7, -1], [-1, 7]] / 12, and A inverse A = [[2, 1], [1, 2]] / 6.
    """
    q = torch.eye(2, dtype=torch.float64)[None, None]
    k = q * torch.log(torch.tensor(3.0, dtype=torch.float64)) * 2**0.5
    expected = torch.tensor([[2, 1], [1, 2]], dtype=torch.float64) / 6
    made = mf.mechanism("csalr", landmarks=9, short="take_all")
    assert_close(weights_by_probing(made, q, k, False), expected, "parity", "plan")
    assert_close(mf.dense_weights(made, q, k)[0, 0], expected, "parity", "definition")


def test_explicit_formula(generator: torch.Generator) -> None:
    q, k, v = torch.randn(3, 8, 4, generator=generator, dtype=torch.float64)
    marks_q, marks_k = q.view(4, 2, 4).mean(1), k.view(4, 2, 4).mean(1)
    first, a, last = ((x @ y.T / 2).softmax(-1) for x, y in ((q, marks_k), (marks_q, marks_k), (marks_q, k)))
    expected = first @ torch.linalg.inv(a + 2 * torch.eye(4, dtype=torch.float64)) @ last @ v
    got = mf.attend(mf.mechanism("csalr", landmarks=4, scale=2.0), *(x[None, None] for x in (q, k, v)))
    assert_close(got[0, 0], expected, "parity")


@pytest.mark.parametrize("scale", [1.0, 0.5, 4.0])
def test_rows_sum_to_one_half_and_so_on(scale: float, generator: torch.Generator) -> None:
    """(A + s I) 1 = (1 + s) 1, so rows sum to 1 / (1 + s), whatever the padding."""
    q, k = torch.randn(2, 2, 3, 21, 8, generator=generator, dtype=torch.float64)
    real = torch.arange(21).expand(2, -1) % 4 != torch.tensor([[4], [1]])
    ones = torch.ones(2, 3, 21, 1, dtype=torch.float64)
    for landmarks in (1, 4, 70):
        got = mf.attend(
            mf.mechanism("csalr", landmarks=landmarks, scale=scale, short="take_all"),
            q,
            k,
            ones,
            key_is_real=real,
        )
        assert_close(got, torch.full_like(got, 1 / (1 + scale)), "parity")


def test_small_scales_approach_full_attention(generator: torch.Generator) -> None:
    """With a landmark for each token: A (A + s I)^-1 A goes to A as s goes to 0; s = 1 is far off."""
    q, k, v = torch.randn(3, 1, 2, 7, 16, generator=generator, dtype=torch.float64)
    full = mf.attend(mf.mechanism("full"), q, k, v)
    errors = [
        (mf.attend(mf.mechanism("csalr", scale=scale, short="take_all"), q, k, v) - full).norm() / full.norm()
        for scale in (1.0, 1e-3, 1e-12)
    ]
    assert errors[0] > 0.4
    assert errors[0] > errors[1] > errors[2]
    assert_close(mf.attend(mf.mechanism("csalr", scale=1e-12, short="take_all"), q, k, v), full, "parity")


def test_landmarks_that_swap_places() -> None:
    """A = [[0, 1], [1, 0]] in any precision: A + I is singular, and the output is finite all the same."""
    q = torch.tensor([[[[1e4, 0.0], [0.0, 1e4]]]])
    x = mf.attend(mf.mechanism("csalr", landmarks=2), q, q.flip(2), torch.ones(1, 1, 2, 1))
    assert_close(x, torch.full_like(x, 0.5), "parity")


def test_bad_input() -> None:
    with pytest.raises(mf.MapformersError, match="csalr: landmarks must be 1 or more, got 0"):
        mf.mechanism("csalr", landmarks=0)
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(mf.MapformersError, match="csalr: scale must be above 0 and finite"):
            mf.mechanism("csalr", scale=scale)
    with pytest.raises(mf.MapformersError, match=r"csalr: causal .* means over later tokens"):
        mf.attention("csalr", 32, 4, causal=True)


def test_more_landmarks_than_keys_are_refused_unless_all_are_taken(generator: torch.Generator) -> None:
    x = torch.randn(1, 2, 5, 4, generator=generator)
    with pytest.raises(
        mf.MapformersError, match="csalr: landmarks must be at most the number of keys 5, got 6"
    ):
        mf.attend(mf.mechanism("csalr", landmarks=6), x, x, x)
    assert mf.attend(mf.mechanism("csalr", landmarks=6, short="take_all"), x, x, x).isfinite().all()
    with pytest.raises(mf.MapformersError, match="csalr: short must be one of"):
        mf.mechanism("csalr", landmarks=6, short="pad")
