"""Which rows attend in Informer: the largest of each document, and the same read off all scores."""

import torch
from torch import Tensor

from mapformers.core.scope import Scope
from mapformers.kernels.softmax import scaled_scores
from mapformers.mechanisms.prototypes.sampled_keys import SampledKeys, sparsity


def chosen_rows(q: Tensor, k: Tensor, scope: Scope, sampled: SampledKeys, threshold: Tensor | None) -> Tensor:
    """[B, H, N] bool, never padding: those above the threshold [H, 1]; None = the best of each document."""
    found = sparsity(q, k, sampled)
    if scope.key_is_real is not None:
        real = scope.key_is_real[:, None, scope.query_start : scope.query_start + q.shape[2]]
        found = found.masked_fill(~real, float("-inf"))
    if threshold is not None:
        return found > threshold
    return largest_of_documents(found, sampled.count, scope.segments) & found.isfinite()


def largest_of_documents(x: Tensor, keep: Tensor, documents: Tensor | None) -> Tensor:
    """[B, H, N] bool: the `keep` [B or 1, N] largest of x [B, H, N] in each document; ties to the first."""
    index = torch.arange(x.shape[2], device=x.device)
    order = x.argsort(dim=-1, descending=True, stable=True)
    start = torch.zeros_like(index)
    if documents is not None:  # order by document, inside it by x
        names = documents[:, None].expand_as(x).gather(2, order)
        by_name = names.argsort(dim=-1, stable=True)
        order, names = order.gather(2, by_name), names.gather(2, by_name)
        begins = torch.ones_like(names, dtype=torch.bool)
        begins[..., 1:] = names[..., 1:] != names[..., :-1]
        start = torch.where(begins, index, 0).cummax(-1).values
    place = torch.empty_like(order).scatter_(2, order, (index - start).expand_as(order))
    return place < keep[:, None]


def chosen_by_definition(
    q: Tensor, k: Tensor, scope: Scope, sampled: SampledKeys, threshold: Tensor | None
) -> Tensor:
    """[B, H, N] bool, the same off the matrix of all scores: slow."""
    (batch, heads, n, _), m = q.shape, k.shape[2]
    scores = scaled_scores(q.detach().double(), k.detach().double())
    times = torch.zeros_like(scores)  # how often a pair was drawn
    for number in range(sampled.draws):
        index, has = sampled.draw(heads, number)
        one = torch.zeros_like(scores).scatter_(3, index.expand(batch, -1, -1).unsqueeze(-1), 1.0)
        times = times + one * has.unsqueeze(-1)
    best = scores.masked_fill(times == 0, float("-inf")).amax(-1)
    found = (best - (times * scores).sum(-1) / times.sum(-1)).float()
    real = torch.ones(1, m, dtype=torch.bool) if scope.key_is_real is None else scope.key_is_real
    queries = real.to(q.device)[:, None, scope.query_start : scope.query_start + n]
    if threshold is not None:
        return queries & (found > threshold)
    index = torch.arange(n, device=q.device)
    mine, other = found.unsqueeze(-1), found.unsqueeze(-2)
    ahead = (other > mine) | ((other == mine) & (index < index[:, None]))
    together = queries.unsqueeze(-2)
    if scope.segments is not None:
        together = together & (scope.segments[:, None, :, None] == scope.segments[:, None, None, :])
    length = together.expand(-1, -1, n, -1).sum(-1)
    return queries & ((ahead & together).sum(-1) < sampled.factor * length.double().log1p().ceil())
