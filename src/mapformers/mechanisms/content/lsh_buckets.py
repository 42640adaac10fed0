"""The strict form of LSH attention: the latest other members of a token's bucket, in every round."""

from dataclasses import replace

import torch
from torch import Tensor

from mapformers.core.plans import Windows
from mapformers.core.scope import Scope, keep_first, keep_last
from mapformers.kernels.softmax import expand_heads


def bucket_windows(
    bucket: Tensor, heads: int, scope: Scope, window: int, buckets: int
) -> tuple[Windows, ...]:
    """The plan without every token's own key: bucket [B, G, N, R]. Segment = (round, bucket)."""
    rounds, real = bucket.shape[-1], scope.key_is_real
    segment = bucket + buckets * torch.arange(rounds, device=bucket.device)
    asked = expand_heads(segment, heads)
    past = Windows(
        before=window + 1,
        query_segment=asked if real is None else asked.masked_fill(~real[:, None, :, None], -1),
        key_segment=segment,
        segment_count=rounds * buckets,
        skip=1,
    )
    return (past,) if scope.causal else (past, replace(past, before=0, after=window, skip=0))


def bucket_counts(bucket: Tensor, others: Tensor, own: Tensor, window: int) -> Tensor:
    """The definition, [B, G, N, N]: in how many rounds each of the `others` is among the `window` nearest.

    others and own [.., N, N] bool: what a query may see besides itself, and itself.
    """
    past = own.long().flip(-1).cumsum(-1).flip(-1).bool()  # up to the query
    count = torch.zeros((), dtype=torch.long, device=bucket.device)
    for h in bucket.unbind(-1):  # [B, G, N]
        mates = (h[..., None] == h[..., None, :]) & others
        count = count + (keep_last(mates & past, window) | keep_first(mates & ~past, window))
    return count
