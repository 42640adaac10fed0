"""Causal feature sums over several stretches: what is carried from one to the next, outputs and gradients."""

import pytest
import torch

from mapformers.kernels.features import STRETCH, causal_features


@pytest.mark.parametrize("n", [STRETCH, STRETCH + 1, 2 * STRETCH + 17])
def test_stretches_carry_their_sums(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    phi_q, phi_k = (torch.rand(1, 2, n, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    values, grad = (torch.randn(1, 2, n, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    inputs = [x.requires_grad_() for x in (phi_q, phi_k, values)]

    attended = causal_features(*inputs)
    kernel = (phi_q @ phi_k.transpose(-1, -2)).tril()
    total = kernel.sum(-1, keepdim=True)
    expected = kernel @ values / total

    torch.testing.assert_close(attended.output, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(attended.lse, total.log().squeeze(-1), rtol=1e-10, atol=1e-10)
    ours_all = torch.autograd.grad(attended.output, inputs, grad)
    for ours, theirs in zip(ours_all, torch.autograd.grad(expected, inputs, grad), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
