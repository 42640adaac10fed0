"""Keys and values pooled into the rows of a Pooled plan."""

import torch
from torch import Tensor

from mapformers.core.plans import Pooled, Ranges
from mapformers.kernels.softmax import at_least_float32


def pooled_rows(plan: Pooled, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Ranges]:
    """Keys [B, G, S, D], values [B, G, S, E], and which of them each query sees. k [B, G, M, D]."""
    ranges = Ranges(None, None, plan.start[:, None, None], plan.end[:, None, None])
    rows_of_k = pool(k, plan.key_weight, plan.row, plan.count)
    return rows_of_k, pool(v, plan.value_weight, plan.row, plan.count), ranges


def pool(x: Tensor, weight: Tensor, row: Tensor, count: int) -> Tensor:
    """x [B, G, M, D] times weight [B, G, M], summed by row [B or 1, M] into [B, G, count, D]."""
    batch, groups, m, dim = x.shape
    weighted = at_least_float32(x) * weight.unsqueeze(-1)
    places = torch.where(row < 0, count, row).expand(batch, m)  # one more row takes what lies in none
    heads = torch.arange(batch * groups, device=x.device).view(batch, groups, 1)
    index = heads * (count + 1) + places[:, None]  # [B, G, M]
    summed = weighted.new_zeros(batch * groups * (count + 1), dim)
    summed = summed.index_add(0, index.flatten(), weighted.reshape(-1, dim))
    return summed.view(batch, groups, count + 1, dim)[:, :, :count].to(x.dtype)
