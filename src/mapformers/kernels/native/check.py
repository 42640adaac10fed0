"""A tiny parity run of a freshly loaded library against the formula: none is trusted before it passed."""

import ctypes

import torch
from torch import Tensor

from mapformers.kernels.native import scan
from mapformers.kernels.native.call import Inputs, Pattern, backward, forward

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 3e-2}


def worst_deviation(library: ctypes.CDLL) -> str | None:
    """What deviates from the formula and by how much; None when all is well."""
    for dtype, tolerance in TOLERANCE.items():
        generator = torch.Generator().manual_seed(0)
        with torch.autocast("cpu", enabled=False):  # the formula is no good in bfloat16
            compared = _example(library, dtype, generator)
            if dtype != torch.bfloat16:
                compared += _sums(library, dtype, generator)
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


def _sums(
    library: ctypes.CDLL, dtype: torch.dtype, generator: torch.Generator
) -> list[tuple[str, Tensor, Tensor]]:
    """(name, native, formula) for causal sums of exponentials over 41 tokens, begun anew after 32."""
    n, dim, features, value_dim = 41, 5, 18, 17
    shapes = ((1, n, dim), (1, n, dim), (1, n, value_dim), (1, features, value_dim), (features, dim), (1, n))
    a, b, values, sums, exponents, mark = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    )
    level = mark.new_zeros(1)
    inputs = scan.ScanInputs(a, b, values, sums, exponents, mark, torch.zeros_like(mark), level)
    found = scan.forward(library, inputs, setting := scan.Setting(stretch=32, threads=1))
    grad = torch.randn(values.shape, generator=generator, dtype=torch.float64).to(dtype)
    grads = scan.backward(
        library, inputs, setting, (found.carried, found.levels), (grad, torch.zeros_like(sums), level)
    )
    leaves = [x.clone().requires_grad_() for x in (a, b, values, sums)]
    with torch.enable_grad():
        q, k = ((x @ exponents.T) for x in leaves[:2])
        q = (q - q.detach().amax(-1, keepdim=True)).exp()  # what features are divided by is part of the marks
        assert found.top is not None
        pairs = (q @ (k + mark.unsqueeze(-1)).exp().mT).tril()
        expected = (pairs @ leaves[2] + q @ leaves[3]) * (-found.top).exp().unsqueeze(-1)
        slopes = torch.autograd.grad(expected, leaves, grad)
    names = ("a", "b", "values", "sums")
    compared = [
        (f"gradient of {name}", x, y)
        for name, x, y in zip(names, grads.tensors()[:4], slopes, strict=True)
        if x is not None
    ]
    return [("causal sums", found.y, expected.detach()), *compared]
