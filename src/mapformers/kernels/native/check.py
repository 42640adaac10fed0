"""A tiny parity run of a freshly loaded library against the formula: none is trusted before it passed."""

import ctypes

import torch
from torch import Tensor

from mapformers.kernels.native.call import Inputs, Pattern, backward, forward

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 3e-2}


def worst_deviation(library: ctypes.CDLL) -> str | None:
    """What deviates from the formula and by how much; None when all is well."""
    for dtype, tolerance in TOLERANCE.items():
        generator = torch.Generator().manual_seed(0)
        with torch.autocast("cpu", enabled=False):  # the formula is no good in bfloat16
            compared = _example(library, dtype, generator)
        for name, ours, theirs in compared:
            deviation = float((ours - theirs).abs().max())
            if not deviation <= tolerance:
                return f"{name} in {str(dtype).removeprefix('torch.')} deviates by {deviation:.1e}"
    return None


def _example(
    library: ctypes.CDLL, dtype: torch.dtype, generator: torch.Generator
) -> list[tuple[str, Tensor, Tensor]]:
    """(name, native, formula) for a window of 9 over 41 shuffled tokens, two query heads to one key head."""
    n, dim, window = 41, 32, 9
    q, k, v, grad = (
        torch.randn(1, heads, n, dim, generator=generator, dtype=torch.float64).to(dtype)
        for heads in (2, 1, 1, 2)
    )
    order = torch.randperm(n, generator=generator)
    place = torch.arange(n)
    pattern = Pattern(
        query_order=order.int()[None, None, None],
        key_order=order.int()[None, None],
        start=(place + 1 - window).clamp(min=0).int()[None, None, None],
        end=(place + 1).int()[None, None, None],
    )
    inputs = Inputs(q, k, v, pattern, scale=dim**-0.5, threads=1)
    out, lse = forward(library, inputs)
    grads = backward(library, inputs, (out, lse), (grad.to(out.dtype), torch.ones_like(lse)))

    leaves = [x.to(out.dtype).requires_grad_() for x in (q, k, v)]
    rank = torch.empty(n, dtype=torch.long).scatter(0, order, place)
    behind = rank[:, None] - rank
    with torch.enable_grad():
        scores = leaves[0] @ leaves[1].transpose(-1, -2) * dim**-0.5
        scores = scores.masked_fill((behind < 0) | (behind >= window), float("-inf"))
        expected, expected_lse = scores.softmax(-1) @ leaves[2], scores.logsumexp(-1)
        slopes = torch.autograd.grad(
            (expected, expected_lse), leaves, (grad.to(out.dtype), torch.ones_like(lse))
        )
    return [
        ("output", out, expected.detach()),
        ("log-sum-exp", lse, expected_lse.detach()),
        ("gradient of q", grads.q, slopes[0]),
        ("gradient of k", grads.k, slopes[1]),
        ("gradient of v", grads.v, slopes[2]),
    ]
