"""The published form of LSH attention: tokens sorted by bucket, cut into chunks, one chunk looks back.

Paper    Kitaev et al. 2020, arXiv 2001.04451, section 2; the code of trax (efficient_attention.py)
Formula  order by (h_r, i), chunks of m; a query sees its own chunk and the one before it, across the borders
         of buckets. The first chunk of a round looks back at the last one of the round before; the first
         round at the last.
Differs  Padding takes no place in a chunk. The last chunk of a round may be shorter.

Which chunk a token falls into depends on the buckets of all tokens, also of later ones: under a causal mask
this leaks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mapformers.core.errors import require
from mapformers.core.plans import Groups
from mapformers.core.scope import Scope


def chunk_groups(bucket: Tensor, heads: int, scope: Scope, chunk: int) -> Groups:
    """The plan without every token's own key: bucket [B, G, N, R] of the tokens."""
    batch, groups, n, rounds = bucket.shape
    real = _real(bucket, scope)  # [B, N]
    index = torch.arange(n, device=bucket.device)
    code = (bucket * n + index[:, None]).transpose(2, 3)  # [B, G, R, N]
    behind_all = int(code.max()) + 1 if n else 1
    code, order = code.masked_fill(~real[:, None, None], behind_all).sort(-1)
    order = order.masked_fill(code == behind_all, -1)
    chunks = -(-n // chunk)
    index = F.pad(order, (0, chunks * chunk - n), value=-1).unflatten(-1, (chunks, chunk)).flatten(2, 3)
    used = -(-real.sum(1) // chunk).clamp(max=-1)  # [B] chunks that hold a token, at least 1
    place = torch.arange(rounds * chunks, device=bucket.device)
    last = (place // chunks - 1) % rounds * chunks + used[:, None] - 1  # [B, R chunks]
    before = torch.where(place % chunks == 0, last, place - 1)
    before = before[:, None, :, None].expand(batch, groups, -1, chunk)
    keys = torch.cat([index.gather(2, before), index], -1)
    index, keys = (x.repeat_interleave(heads // groups, 1) for x in (index, keys))
    return Groups(query_index=index, key_index=keys, allowed=index.unsqueeze(-1) != keys.unsqueeze(-2))


def chunk_counts(bucket: Tensor, scope: Scope, chunk: int) -> Tensor:
    """The definition, [B, G, N, N]: how often a query meets a key, the scope and its own key apart."""
    n, rounds = bucket.shape[2:]
    real = _real(bucket, scope)[:, None]  # [B, 1, N]
    index = torch.arange(n, device=bucket.device)
    last = (real.sum(-1, keepdim=True) - 1).div(chunk, rounding_mode="floor")  # [B, 1, 1]
    of_round = []
    for h in bucket.unbind(-1):  # [B, G, N]
        earlier = (h[..., None, :] < h[..., None]) | (
            (h[..., None, :] == h[..., None]) & (index < index[:, None])
        )
        of_round.append((earlier & real[..., None, :]).sum(-1) // chunk)  # [B, G, N]
    count = torch.zeros(*bucket.shape[:2], n, n, dtype=torch.long, device=bucket.device)
    for r, own in enumerate(of_round):
        before = of_round[(r - 1) % rounds]
        count += own[..., None] == own[..., None, :]
        count += (own[..., None] > 0) & (own[..., None] - 1 == own[..., None, :])
        count += (own[..., None] == 0) & (before == last)[..., None, :]
    return count


def _real(bucket: Tensor, scope: Scope) -> Tensor:
    """[B, N] bool, which tokens are no padding. Raises MapformersError for packed documents."""
    require(
        scope.segments is None,
        'reformer: variant="paper" sorts packed documents together, got segments; use variant="strict"',
    )
    if scope.key_is_real is not None:
        return scope.key_is_real.expand(bucket.shape[0], -1)
    return torch.ones(bucket.shape[0], bucket.shape[2], dtype=torch.bool, device=bucket.device)
