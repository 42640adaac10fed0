"""Causal feature sums over several stretches: what is carried from one to the next, outputs and gradients."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mapformers.core.errors import MapformersError
from mapformers.core.plans import Features
from mapformers.core.scope import Scope
from mapformers.kernels.feature_sums import Keys
from mapformers.kernels.features import causal_features, feature_attend
from mapformers.kernels.native.library import load, torch_kernels
from mapformers.kernels.scan import STRETCH
from mapformers.kernels.scan_tile import CHUNK
from tests.tolerances import assert_close

TWO_AND_MORE = 2 * STRETCH + 17
LENGTHS = [STRETCH, STRETCH + 1, pytest.param(TWO_AND_MORE, marks=pytest.mark.slow)]


@pytest.fixture(autouse=True, params=["native", "torch"])
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every case runs on both."""
    if request.param == "native" and load().library is None:
        pytest.skip(f"no native kernel: {load().reason}")
    with torch_kernels() if request.param == "torch" else contextlib.nullcontext():
        yield


def draw(n: int, *shape: int) -> tuple[torch.Generator, list[Tensor]]:
    """phi_q, phi_k, values and a gradient for n tokens of two heads."""
    generator = torch.Generator().manual_seed(n)
    phi = [torch.rand(1, 2, n, 3, generator=generator, dtype=torch.float64) for _ in range(2)]
    values = [torch.randn(1, 2, n, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
    return generator, phi + values


def compare(plan: Features, values: Tensor, grad: Tensor, kernel: Tensor, inputs: list[Tensor]) -> None:
    """Output, log-sum-exp and gradients of the plan beside those of its matrix [1, 2, N, N]."""
    attended = feature_attend(plan, values, Scope(causal=True))
    total = kernel.sum(-1, keepdim=True)
    expected = kernel @ values / (total.clamp(min=plan.floor) if plan.floor else total)
    torch.testing.assert_close(attended.output, expected, rtol=1e-10, atol=1e-10)
    if not plan.floor:
        torch.testing.assert_close(attended.lse, total.log().squeeze(-1), rtol=1e-10, atol=1e-10)
    ours_all = torch.autograd.grad(attended.output, inputs, grad)
    for ours, theirs in zip(ours_all, torch.autograd.grad(expected, inputs, grad), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("n", LENGTHS)
def test_stretches_carry_their_sums(n: int) -> None:
    _, (phi_q, phi_k, values, grad) = draw(n)
    inputs = [x.requires_grad_() for x in (phi_q, phi_k, values)]
    compare(Features(phi_q, phi_k), values, grad, (phi_q @ phi_k.transpose(-1, -2)).tril(), inputs)


@pytest.mark.parametrize(
    ("n", "given"),
    [
        (STRETCH, "both"),
        *((STRETCH + 1, given) for given in ("both", "weight", "decay")),
        pytest.param(TWO_AND_MORE, "both", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("floor", [0.0, 0.5])
def test_weights_and_decay_equal_their_matrix(n: int, floor: float, given: str) -> None:
    generator, (phi_q, phi_k, values, grad) = draw(n)
    weight, decay = (torch.randn(1, 2, n, generator=generator, dtype=torch.float64) for _ in range(2))
    decay = F.logsigmoid(decay + 3)
    weight, decay = (x.requires_grad_() for x in (weight, decay))
    inputs = [x.requires_grad_() for x in (phi_q, phi_k, values)]
    kernel = phi_q @ phi_k.transpose(-1, -2)
    plan = Features(
        phi_q,
        phi_k,
        log_weight_k=None if given == "decay" else weight,
        log_decay=None if given == "weight" else decay,
        floor=floor,
    )
    exponent = torch.zeros_like(kernel)
    if given != "decay":
        exponent = exponent + weight.unsqueeze(-2)
        inputs.append(weight)
    if given != "weight":
        since = torch.cat([torch.zeros_like(decay[..., :1]), decay[..., 1:].cumsum(-1)], -1)
        exponent = exponent + since.unsqueeze(-1) - since.unsqueeze(-2)
        inputs.append(decay)
    compare(plan, values, grad, (kernel * exponent.clamp(max=100).exp()).tril(), inputs)


def test_decay_by_hand() -> None:
    """Half as much for every step: the second token sees the first with 1/3 and itself with 2/3."""
    ones = torch.ones(1, 1, 3, 1)
    v = torch.tensor([3.0, 6.0, 14.0]).view(1, 1, 3, 1)
    plan = Features(ones, ones, log_decay=torch.full((1, 1, 3), 0.5).log())
    output = feature_attend(plan, v, Scope(causal=True)).output.flatten()
    assert_close(output, torch.tensor([3.0, 5.0, (0.25 * 3 + 0.5 * 6 + 14) / 1.75]), "parity")


def test_a_step_goes_on_where_the_sums_ended() -> None:
    generator, (phi_q, phi_k, values, _) = draw(CHUNK + 9)
    weight = 30 * torch.randn(1, 2, CHUNK + 9, generator=generator, dtype=torch.float64)
    decay = -torch.rand(1, 2, CHUNK + 9, generator=generator, dtype=torch.float64)
    whole, _ = causal_features(phi_q, Keys(phi_k, F.pad(values, (0, 1), value=1.0), weight, decay))
    carried, parts = None, []
    for start, end in ((0, 5), (5, 6), (6, CHUNK + 9)):
        keys = Keys(*(x[:, :, start:end] for x in (phi_k, F.pad(values, (0, 1), value=1.0), weight, decay)))
        part, carried = causal_features(phi_q[:, :, start:end], keys, 0.0, carried)
        parts.append(part)
    assert_close(torch.cat([part.output for part in parts], 2), whole.output, "parity")
    assert_close(torch.cat([part.lse for part in parts], 2), whole.lse, "parity")


@pytest.mark.parametrize("causal", [True, False])
def test_weights_of_any_size_neither_overflow_nor_vanish(causal: bool) -> None:
    """Log-weights from -1e4 to 1e4, falling and rising: the heaviest key seen so far decides."""
    n = 2 * CHUNK
    ones, v = torch.ones(1, 1, n, 1), torch.arange(float(n)).view(1, 1, n, 1)
    for weight in (torch.linspace(-1e4, 1e4, n), torch.linspace(1e4, -1e4, n)):
        plan = Features(ones, ones, log_weight_k=weight.view(1, 1, n))
        output = feature_attend(plan, v, Scope(causal=causal)).output.flatten()
        seen = weight.expand(n, -1)
        if causal:
            seen = seen.masked_fill(torch.ones(n, n).triu(1).bool(), float("-inf"))
        assert_close(output, seen.argmax(-1).float(), "parity")


def test_decay_needs_an_order() -> None:
    ones = torch.ones(1, 1, 3, 1)
    with pytest.raises(MapformersError, match="needs causal=True"):
        feature_attend(Features(ones, ones, log_decay=-ones[..., 0]), ones, Scope())
