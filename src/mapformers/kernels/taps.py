"""The Taps plan: a convolution of the values along the tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mapformers.core.attended import Attended
from mapformers.core.plans import Taps
from mapformers.core.scope import Scope
from mapformers.kernels.softmax import expand_heads


def taps_attend(plan: Taps, q: Tensor, v: Tensor, scope: Scope) -> Attended:
    """Output [B, H, N, E] for v [B, G, N, E]; the log-sum-exp is NaN, for there is none."""
    v = expand_heads(v, q.shape[1])
    weight = plan.weight.to(v.dtype)[:, None, :, None]  # [H, 1, T, 1]
    place = None
    if scope.key_is_real is not None:  # close the ranks of the real tokens up, so that padding is no step
        ranks = scope.ranks_of_keys(v.shape[2], v.device).expand(v.shape[0], -1)
        place = ranks[:, None, :, None].expand(v.shape)
        v = torch.zeros_like(v).scatter_add(2, place, v * scope.key_is_real[:, None, :, None])
    output = F.conv2d(v, weight, padding=(weight.shape[2] // 2, 0), groups=v.shape[1])
    if place is not None:
        output = output.gather(2, place)
    return Attended(output, q.new_full(q.shape[:3], float("nan")))
