"""What a kernel returns, and the exact merge of partial results."""

from typing import NamedTuple

import torch
from torch import Tensor


class Attended(NamedTuple):
    """output [B, H, N, E] and lse [B, H, N], the log of the sum of exp(score) over the keys seen.

    A row that sees nothing has output 0 and lse -inf.
    """

    output: Tensor
    lse: Tensor


def merge(outputs: Tensor, lse: Tensor, dim: int) -> Attended:
    """One softmax out of parts with disjoint keys, stacked along `dim` of lse [..] and of outputs [.., E].

    Exact, forward and backward: out = sum_p exp(lse_p - lse) out_p with lse = log sum_p exp(lse_p).
    """
    top = lse.detach().amax(dim, keepdim=True)
    top = torch.where(top.isfinite(), top, 0.0)
    weight = (lse - top).exp()  # parts that saw nothing weigh 0
    total = weight.sum(dim, keepdim=True)
    share = weight / torch.where(total > 0, total, 1.0)
    merged = (outputs * share.unsqueeze(-1).to(outputs.dtype)).sum(dim)
    seen = total.squeeze(dim) > 0
    log_total = torch.where(seen, total.squeeze(dim), 1.0).log() + top.squeeze(dim)
    return Attended(merged, log_total.masked_fill(~seen, float("-inf")))
