"""Causal feature sums over several stretches: what is carried from one to the next, outputs and gradients."""

import pytest
import torch

from mapformers.kernels.features import STRETCH, causal_sums


@pytest.mark.parametrize("n", [STRETCH, STRETCH + 1, 2 * STRETCH + 17])
def test_stretches_carry_their_sums(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    phi_q, phi_k = (torch.rand(1, 2, n, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    values, grad = (torch.randn(1, 2, n, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    inputs = [x.requires_grad_() for x in (phi_q, phi_k, values)]

    summed = causal_sums(*inputs)
    expected = (phi_q @ phi_k.transpose(-1, -2)).tril() @ values

    torch.testing.assert_close(summed, expected, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(
        torch.autograd.grad(summed, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
