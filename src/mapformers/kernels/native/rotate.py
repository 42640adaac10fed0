"""Rotation of pairs of channels on the native kernel, as a torch operator that autograd knows."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from mapformers.kernels.native.call import PAIR, STORED, TRIPLE, Rotate, dense_rows, rows_of, sum_dtype
from mapformers.kernels.native.library import library, thread_count


@torch.library.custom_op("mapformers::rotate", mutates_args=())
def native_rotate(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    """x [B, H, N, D] turned by cos, sin [B or 1, N, D/2] of the angles; back = the other way round."""
    dtype = sum_dtype(x.dtype)
    x, cos, sin = dense_rows(x), dense_rows(cos.to(dtype)), dense_rows(sin.to(dtype))
    out = rows_of(library(), x.shape, x.dtype)
    batch, heads, n, dim = x.shape
    cos_rows, sin_rows = cos.expand(batch, n, dim // 2), sin.expand(batch, n, dim // 2)
    call = Rotate(
        x=x.data_ptr(),
        out=out.data_ptr(),
        cos=cos.data_ptr(),
        sin=sin.data_ptr(),
        x_stride=TRIPLE(*x.stride()[:3]),
        out_stride=TRIPLE(*out.stride()[:3]),
        cos_stride=PAIR(*cos_rows.stride()[:2]),
        sin_stride=PAIR(*sin_rows.stride()[:2]),
        batch=batch,
        heads=heads,
        length=n,
        half=dim // 2,
        threads=thread_count(),
        back=int(back),
    )
    library().mapformers_rotate(ctypes.byref(call), STORED[x.dtype])
    return out


@native_rotate.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    return torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cos, sin, ctx.back = inputs
    ctx.save_for_backward(cos, sin)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    """A rotation is undone by turning back; angles have no gradient."""
    return torch.ops.mapformers.rotate(grad, *ctx.saved_tensors, not ctx.back), None, None, None


native_rotate.register_autograd(_backward, setup_context=_save)
