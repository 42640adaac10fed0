"""What a kernel returns, and the exact merge of partial results."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Attended(NamedTuple):
    """output [B, H, N, E] and lse [B, H, N], the log of the sum of exp(score) over the keys seen.

    A row that sees nothing has output 0 and lse -inf. kernel names the code that ran: torch, native, flex
    or varlen; where parts ran on several, joined by "+"; a part that needs none names none.
    """

    output: Tensor
    lse: Tensor
    kernel: str = "torch"


def merge(parts: Sequence[Attended], mass: Tensor | None = None) -> Attended:
    """One softmax out of parts with disjoint keys, and of further keys of value zero.

    mass [B, H, N] is the log-sum-exp of the scores of the latter.
    Exact, forward and backward: out = sum_p exp(lse_p - lse) out_p with lse = log sum_p exp(lse_p).
    """
    masses = [part.lse for part in parts] + ([] if mass is None else [mass])
    top = functools.reduce(torch.maximum, (x.detach() for x in masses))
    top = torch.where(top.isfinite(), top, 0.0)
    weights = [(x - top).exp() for x in masses]  # parts that saw nothing weigh 0
    total = functools.reduce(torch.add, weights)
    seen = total > 0
    total = torch.where(seen, total, 1.0)
    scale = total.reciprocal()
    output = functools.reduce(
        torch.add,
        (
            part.output * (weight * scale).unsqueeze(-1).to(part.output.dtype)
            for part, weight in zip(parts, weights, strict=False)
        ),
    )
    lse = (total.log() + top).masked_fill(~seen, float("-inf"))
    return Attended(output, lse, "+".join(sorted({part.kernel for part in parts} - {""})))
