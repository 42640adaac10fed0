"""low_rank_band: by hand, the rank of the global scores, full attention as a special case."""

import math

import pytest
import torch

import mapformers as mf
from mapformers.core.mechanism import Mechanism, Shape
from tests.mechanisms.test_by_hand import H, Q, T, weights_by_probing
from tests.tolerances import assert_close


def with_maps(query_map: torch.Tensor, key_map: torch.Tensor, window: int) -> Mechanism:
    """query_map, key_map [H, D, R]."""
    heads, dim, rank = query_map.shape
    made = mf.mechanism("low_rank_band", rank=rank, window=window).bind(Shape(heads, heads, dim)).double()
    with torch.no_grad():
        for parameter, values in zip(made.parameters(), (query_map, key_map), strict=True):
            parameter.copy_(values)
    return made


def test_by_hand() -> None:
    """Equal scores: a mean over all keys plus a mean over neighbours one step away."""
    x = torch.zeros(1, 1, 4, 2, dtype=torch.float64)
    made = mf.mechanism("low_rank_band", rank=1, window=1)
    band = [[H, H, 0, 0], [T, T, T, 0], [0, T, T, T], [0, 0, H, H]]
    both = torch.tensor(band, dtype=torch.float64) + Q
    assert_close(weights_by_probing(made.bind(Shape(1, 1, 2)).double(), x, x, False), both, "parity", "plan")
    assert_close(mf.dense_weights(made, x, x)[0, 0], both, "parity", "definition")
    rows = [[2, 0, 0, 0], [1, 1, 0, 0], [T, T + H, T + H, 0], [Q, Q, Q + H, Q + H]]
    causal = torch.tensor(rows, dtype=torch.float64)
    assert_close(weights_by_probing(made, x, x, True), causal, "parity", "causal")


def test_by_hand_with_scores() -> None:
    """Queries (2, 0) and (0, 1), keys (ln 1, 0) and (ln 3, 0). P reads the second number, R the first:
    P q = 0 and 1, R k = ln 1 and ln 3. The band (window 0) shows the own key alone.
    """
    ln3 = math.log(3)
    q = torch.tensor([[[[2.0, 0], [0, 1]]]], dtype=torch.float64)
    k = torch.tensor([[[[0.0, 0], [ln3, 0]]]], dtype=torch.float64)
    first, second = torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[0.0], [1.0]]])
    made = with_maps(second.double(), first.double(), window=0)
    expected = torch.tensor([[H + 1, H], [Q, 3 * Q + 1]], dtype=torch.float64)
    assert_close(weights_by_probing(made, q, k, False), expected, "parity", "plan")


@pytest.mark.parametrize("rank", [1, 3])
def test_global_scores_have_the_rank(rank: int, generator: torch.Generator) -> None:
    """Logarithms of the global weights are the scores less one number per row: rank + 1 at most."""
    q, k = torch.randn(2, 1, 1, 20, 8, generator=generator, dtype=torch.float64)
    maps = torch.randn(2, 1, 8, rank, generator=generator, dtype=torch.float64) / 4
    both = weights_by_probing(with_maps(maps[0], maps[1], window=0), q, k, False)
    scores = (both - torch.eye(20, dtype=torch.float64)).log()
    assert torch.linalg.matrix_rank(scores, rtol=1e-9) == rank + 1


@pytest.mark.parametrize("causal", [False, True])
def test_all_dimensions_and_a_long_window_are_full_attention_twice(
    causal: bool, generator: torch.Generator
) -> None:
    q, k, v = torch.randn(3, 2, 2, 19, 8, generator=generator, dtype=torch.float64)
    one = torch.eye(8, dtype=torch.float64).expand(2, 8, 8)
    full = mf.attend(mf.mechanism("full"), q, k, v, causal=causal)
    assert_close(mf.attend(with_maps(one, one, window=19), q, k, v, causal=causal), 2 * full, "parity")


def test_bad_input() -> None:
    with pytest.raises(mf.MapformersError, match="low_rank_band: rank must be 1 or more, got 0"):
        mf.mechanism("low_rank_band", rank=0)
    with pytest.raises(mf.MapformersError, match="low_rank_band: window must be 0 or more, got -1"):
        mf.mechanism("low_rank_band", window=-1)
