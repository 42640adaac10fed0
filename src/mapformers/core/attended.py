"""What a kernel returns, and the exact merge of partial results."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Attended(NamedTuple):
    """output [B, H, N, E] and lse [B, H, N], the log of the sum of exp(score) over the keys seen.

    A row that sees nothing has output 0 and lse -inf.
    """

    output: Tensor
    lse: Tensor


def merge(parts: Sequence[Attended]) -> Attended:
    """One softmax out of parts with disjoint keys.

    Exact, forward and backward: out = sum_p exp(lse_p - lse) out_p with lse = log sum_p exp(lse_p).
    """
    top = functools.reduce(torch.maximum, (part.lse.detach() for part in parts))
    top = torch.where(top.isfinite(), top, 0.0)
    weights = [(part.lse - top).exp() for part in parts]  # parts that saw nothing weigh 0
    total = functools.reduce(torch.add, weights)
    seen = total > 0
    total = torch.where(seen, total, 1.0)
    scale = total.reciprocal()
    shares = [(weight * scale).unsqueeze(-1) for weight in weights]
    output = functools.reduce(
        torch.add,
        (part.output * share.to(part.output.dtype) for part, share in zip(parts, shares, strict=True)),
    )
    return Attended(output, (total.log() + top).masked_fill(~seen, float("-inf")))
