"""The published membership: every cluster takes its best tokens of the whole sequence.

Paper    Roy et al. 2021, arXiv 2003.05997, section 4.1
Formula  S_c = the w tokens with the largest x^ . mu_c; out_i = mean over the clusters with i in S_c(queries)
         of softmax over j in S_c(keys)
Differs  Padding takes no place. A query in no cluster gives 0.

Whether a token is a member depends on all tokens, also on later ones: under a causal mask this leaks.
"""

import torch
from torch import Tensor

from mapformers.core.plans import Groups
from mapformers.core.scope import Scope
from mapformers.mechanisms.content.kmeans import KMeans


def top_member_groups(q: Tensor, k: Tensor, scope: Scope, kmeans: KMeans, window: int) -> Groups:
    """The plan: q [B, H, N, D] and k [B, G, M, D], `window` members of each cluster."""
    heads = q.shape[1]
    # [B, H, C, N] and [B, G, C, M]
    of_queries, of_keys = (kmeans.similarity(x).detach().transpose(-1, -2) for x in (q, k))
    query_index = _top(of_queries, window, _real_queries(q, k, scope))
    key_index = _top(of_keys, window, scope.key_is_real).repeat_interleave(heads // k.shape[1], 1)
    return Groups(query_index=query_index, key_index=key_index, combine="mean")


def top_member_weights(
    q: Tensor, k: Tensor, scores: Tensor, scope: Scope, kmeans: KMeans, window: int
) -> Tensor:
    """The definition, [B, H, N, M]; scores [B, H, N, M] scaled."""
    q_in = _ranked_in(kmeans.similarity(q), window, _real_queries(q, k, scope))
    k_in = _ranked_in(kmeans.similarity(k), window, scope.key_is_real)
    k_in = k_in.repeat_interleave(q.shape[1] // k.shape[1], 1)
    visible = scope.visible(q.shape[2], k.shape[2], q.device)
    weights, count = torch.zeros_like(scores), torch.zeros_like(scores[..., :1])
    for c in range(q_in.shape[-1]):
        allowed = q_in[..., c, None] & k_in[..., None, :, c] & visible
        some = allowed.any(-1, keepdim=True)
        masked = scores.masked_fill(~allowed, float("-inf")).masked_fill(~some, 0.0)
        weights = weights + torch.where(some, masked.softmax(-1), 0.0)
        count = count + some
    return weights / count.clamp(min=1)


def _real_queries(q: Tensor, k: Tensor, scope: Scope) -> Tensor | None:
    """Padding among the queries, known when they are the tokens of the keys."""
    return scope.key_is_real if q.shape[2] == k.shape[2] else None


def _top(similarity: Tensor, count: int, is_real: Tensor | None) -> Tensor:
    """[B, H, C, N] to [B, H, C, count] indices of the best tokens in order of position; padding gives -1."""
    if is_real is not None:
        similarity = similarity.masked_fill(~is_real[:, None, None], float("-inf"))
    tokens = similarity.shape[-1]
    best = similarity.topk(min(count, tokens), dim=-1)
    index = best.indices.masked_fill(best.values == float("-inf"), tokens).sort(-1).values
    return index.masked_fill(index == tokens, -1)


def _ranked_in(similarity: Tensor, window: int, is_real: Tensor | None) -> Tensor:
    """[B, H, N, C] bool: fewer than `window` tokens are better, counted one by one."""
    if is_real is not None:
        similarity = similarity.masked_fill(~is_real[:, None, :, None], float("-inf"))
    better = (similarity.unsqueeze(2) > similarity.unsqueeze(3)).sum(3)  # [B, H, N, C]
    return (better < window) & (similarity > float("-inf"))
