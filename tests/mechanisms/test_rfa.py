"""Random feature attention: by hand, its limit, the gate step by step, refusals."""

import math

import pytest
import torch
import torch.nn.functional as F

import mapformers as mf
from mapformers.core.errors import MapformersError
from mapformers.core.mechanism import Shape
from mapformers.mechanisms.linear.rfa import Rfa, RfaConfig
from tests.tolerances import assert_close


def rfa(heads: int = 2, dim: int = 4, **options: object) -> Rfa:
    made = Rfa(RfaConfig(**options))  # type: ignore[arg-type]
    made.bind(Shape(heads, heads, dim), torch.Generator().manual_seed(0))
    return made


def test_four_tokens_by_hand() -> None:
    """D = 1: unit vectors are signs, so the kernel is 1 for equal signs and cos(2 w / sigma) for others."""
    made = rfa(1, 1, features=1, sigma=1.0, floor=0.5).double()
    made.random.rows.fill_(0.75)
    q = torch.tensor([3.0, -0.5, 2.0, 0.1], dtype=torch.float64).view(1, 1, 4, 1)
    k = torch.tensor([1.0, 4.0, -2.0, -7.0], dtype=torch.float64).view(1, 1, 4, 1)
    other = math.cos(1.5)  # 0.0707: the second query's sum is below the floor
    expected = torch.tensor(
        [
            [1.0, 0.0, 0.0, 0.0],
            [other / 0.5, other / 0.5, 0.0, 0.0],
            [1 / (2 + other), 1 / (2 + other), other / (2 + other), 0.0],
            [0.5 / (1 + other), 0.5 / (1 + other), 0.5 * other / (1 + other), 0.5 * other / (1 + other)],
        ],
        dtype=torch.float64,
    )
    assert_close(mf.dense_weights(made, q, k, causal=True)[0, 0], expected, "parity")
    v = torch.eye(4, dtype=torch.float64)[None, None]
    assert_close(mf.attend(made, q, k, v, causal=True)[0, 0], expected, "parity")


@torch.no_grad()
def test_many_features_come_close_to_softmax_of_unit_vectors() -> None:
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randn(1, 2, 32, 8, generator=generator) for _ in range(2))
    exact = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT / 0.7**2).softmax(-1)
    errors = []
    for features in (64, 4096):
        found = mf.dense_weights(rfa(dim=8, features=features, sigma=0.7, floor=1e-6), q, k)
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[1] < 0.1
    assert errors[1] < errors[0] / 4  # the rate is 1/8


def test_the_gate_is_the_recurrence_of_the_paper() -> None:
    """S = g S + (1 - g) phi(k) v^T, z = g z + (1 - g) phi(k), one token after another."""
    n, dim = 150, 6
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 2, n, dim, generator=generator, dtype=torch.float64) for _ in range(3))
    made = rfa(dim=dim, features=5, gate=True).double()
    with torch.no_grad():
        made.gate_bias.copy_(torch.tensor([0.5, -1.0]))
    sums, total, rows = (
        torch.zeros(2, 10, dim).double(),
        torch.zeros(2, 10).double(),
        made.random.rows.double(),
    )
    outputs = []
    for t in range(n):
        feature = []
        for x in (q, k):
            along = F.normalize(x[0, :, t], dim=-1) @ rows.T
            feature.append(torch.cat([along.sin(), along.cos()], -1) / 5**0.5)
        g = torch.sigmoid((made.gate_weight * k[0, :, t]).sum(-1) + made.gate_bias)[:, None]
        sums = g[..., None] * sums + (1 - g)[..., None] * feature[1][..., None] * v[0, :, t, None]
        total = g * total + (1 - g) * feature[1]
        below = (feature[0] * total).sum(-1, keepdim=True).clamp(min=0.1)
        outputs.append((feature[0][:, None] @ sums)[:, 0] / below)
    assert_close(mf.attend(made, q, k, v, causal=True)[0], torch.stack(outputs, 1), "parity")


def test_a_gate_needs_an_order() -> None:
    x = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(MapformersError, match="rfa: gate=true needs causal=True"):
        mf.attend(rfa(gate=True), x, x, x)


@pytest.mark.parametrize("option", ["features", "sigma", "floor"])
def test_zero_is_refused(option: str) -> None:
    with pytest.raises(MapformersError, match=f"rfa: {option} must be"):
        RfaConfig(**{option: 0})


def test_a_negative_redraw_is_refused() -> None:
    with pytest.raises(MapformersError, match="rfa: redraw must be 0 or more"):
        RfaConfig(redraw=-1)
