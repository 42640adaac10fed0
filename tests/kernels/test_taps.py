"""Taps against torch's own convolution, and Dense with maps against attention of mapped queries and keys."""

import pytest
import torch

import mapformers as mf
from mapformers.core.plans import Dense, Taps, Union
from mapformers.core.scope import Scope
from mapformers.kernels.run import run
from tests.tolerances import assert_close


def test_taps_by_hand_over_padding() -> None:
    """Values 1, 2, 4, 8, the second is padding: neighbours of 4 are 1 and 8. Taps 10, 1, 100."""
    v = torch.tensor([1.0, 2, 4, 8]).view(1, 1, 4, 1)
    plan, real = Taps(torch.tensor([[10.0, 1, 100]])), torch.tensor([[True, False, True, True]])
    plain = run(plan, v, v, v, Scope()).output.flatten().tolist()
    assert plain == [1 + 200, 10 + 2 + 400, 20 + 4 + 800, 40 + 8]
    padded = run(plan, v, v, v, Scope(key_is_real=real)).output.flatten().tolist()
    assert padded == [1 + 400, 1 + 400, 10 + 4 + 800, 40 + 8]


def test_taps_have_no_log_sum_exp(generator: torch.Generator) -> None:
    q, k, v = torch.randn(3, 1, 2, 5, 4, generator=generator)
    taps = Taps(torch.ones(2, 3))
    assert run(taps, q, k, v, Scope()).lse.isnan().all()
    with pytest.raises(mf.MapformersError, match="union: a part must have a log-sum-exp"):
        run(Union((taps, Dense())), q, k, v, Scope())


@pytest.mark.parametrize("causal", [False, True])
def test_mapped_queries_and_keys(causal: bool, generator: torch.Generator) -> None:
    """Two query heads for each key/value head; the scale is that of the mapped size."""
    q = torch.randn(2, 4, 9, 8, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, 2, 2, 9, 8, generator=generator, dtype=torch.float64)
    maps = torch.randn(2, 4, 8, 3, generator=generator, dtype=torch.float64)
    wide_k, wide_v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q @ maps[0], wide_k @ maps[1], wide_v, is_causal=causal
    )
    got = run(Dense(maps=(maps[0], maps[1])), q, k, v, Scope(causal=causal)).output
    assert_close(got, expected, "parity")
