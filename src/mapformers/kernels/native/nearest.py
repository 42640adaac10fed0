"""The nearest centroids on the native kernel."""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from mapformers.kernels.native.call import STORED, TRIPLE, Nearest, dense_rows, sum_dtype
from mapformers.kernels.native.library import library, thread_count

MOST_NEAREST = 8  # centroids that a vector may name


@torch.library.custom_op("mapformers::nearest", mutates_args=())
def native_nearest(x: Tensor, centroids: Tensor, bias: Tensor, count: int, shortest: float) -> Tensor:
    """[B, H, N, count] for x [B, H, N, D], centroids [G, C, D], bias [G, C]; see kernels/nearest.py."""
    dtype, dim = sum_dtype(x.dtype), x.shape[-1]
    missing = -dim % library().mapformers_lanes(STORED[dtype])
    if missing:  # zeros would move the mean: centre first, then fill
        x = x.to(dtype)
        x, centroids = F.pad(x - x.mean(-1, keepdim=True), (0, missing)), F.pad(centroids, (0, missing))
    x, centroids, bias = dense_rows(x), centroids.to(dtype).contiguous(), bias.to(dtype).contiguous()
    best = torch.empty(*x.shape[:3], count, dtype=torch.long)
    call = Nearest(
        x=x.data_ptr(),
        centroids=centroids.data_ptr(),
        bias=bias.data_ptr(),
        best=best.data_ptr(),
        stride=TRIPLE(*x.stride()[:3]),
        batch=x.shape[0],
        heads=x.shape[1],
        groups=centroids.shape[0],
        length=x.shape[2],
        dim=x.shape[3],
        clusters=centroids.shape[1],
        count=count,
        threads=thread_count(),
        shortest=shortest,
    )
    library().mapformers_nearest(ctypes.byref(call), STORED[x.dtype])
    return best


@native_nearest.register_fake
def _(x: Tensor, centroids: Tensor, bias: Tensor, count: int, shortest: float) -> Tensor:
    return x.new_empty(*x.shape[:3], count, dtype=torch.long)
