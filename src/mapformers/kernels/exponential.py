"""Features that are exponentials of projections: exp(R x), kept in a range where nothing overflows."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOG2_E = math.log2(math.e)
AT_A_TIME = 1024  # tokens whose features fit into the cache


def exponential(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """exp(R x - top) and top = the largest entry of R x, for x [.., n, D] and rows R [F, D].

    Without gradient. The largest feature of a token is 1. top [.., n] depends on that token alone.
    """
    exponent = x @ (rows * LOG2_E).T  # torch's exp2 takes a third of the time of its exp
    top = exponent.amax(-1)
    return exponent.sub_(top.unsqueeze(-1)).exp2_(), top / LOG2_E


def exponential_grad(grad: Tensor, features: Tensor, rows: Tensor) -> Tensor:
    """The gradient of x; writes over grad. None runs through top: what it divides by, it is multiplied with
    elsewhere.
    """
    return grad.mul_(features) @ rows


class Exponential(torch.autograd.Function):
    """`exponential` of all tokens, some at a time: only the result is ever large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """x [.., N, D] to features [.., N, F] and top [.., N]."""
        parts = [exponential(part, rows) for part in x.flatten(0, -2).split(AT_A_TIME)]
        features, top = (torch.cat(found).unflatten(0, x.shape[:-1]) for found in zip(*parts, strict=True))
        ctx.save_for_backward(features, rows)
        ctx.mark_non_differentiable(top)
        return features, top

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None]:
        """Nothing for the rows: they are drawn."""
        features, rows = ctx.saved_tensors
        parts = zip(*(y.flatten(0, -2).split(AT_A_TIME) for y in (grad, features)), strict=True)
        found = [exponential_grad(part.clone(), features, rows) for part, features in parts]
        return torch.cat(found).unflatten(0, features.shape[:-1]), None
