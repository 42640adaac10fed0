"""Who gets an edge to whom: the edge predictors of SAC, one after another by an LSTM, or all at once.

Both score a node j for a slot of source i by h . e_j / sqrt(D) with nodes e = k W, and choose among the
tokens that i may see: the best in evaluation, in training a sample, decided by a number out of a hash.
Everything is done for each key/value head.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mapformers.core.draw import normal
from mapformers.core.plans import Dense
from mapformers.core.scope import Scope
from mapformers.kernels.run import run
from mapformers.kernels.softmax import default_scale
from mapformers.mechanisms.sparse.draws import hashed

SCORES_ALIVE = 2**20  # scores of one stretch of sources, over all heads and batch rows


class Noise(NamedTuple):
    """Where the noise of one step of training comes from."""

    seed: Tensor
    step: Tensor

    def uniform(self, source: Tensor, slots: Tensor, sizes: tuple[int, int]) -> Tensor:
        """[B, G, slots, n] in (0, 1) for source ranks [B or 1, n]; sizes: B, G."""
        row = torch.arange(sizes[0], device=source.device)[:, None, None, None]
        head = torch.arange(sizes[1], device=source.device)[:, None, None]
        bits = hashed(self.seed, self.step, row, head, slots[:, None], source[:, None, None])
        return (((bits >> 11) & ((1 << 53) - 1)).double() + 0.5) * 2.0**-53


class Predictor(nn.Module):
    """Base of both: nodes, the choice, and the probability of edges that were chosen."""

    def __init__(self, sizes: tuple[int, int, int], generator: torch.Generator) -> None:
        """sizes: key/value heads, head size, edges of a source."""
        super().__init__()
        groups, dim, self.edges = sizes
        self.node = nn.Parameter(normal((groups, dim, dim), generator, dim**-0.5))

    def choose(self, k: Tensor, scope: Scope, sources: slice, noise: Noise | None) -> Tensor:
        """[B, G, n, edges] keys for the given rows of k [B, G, M, D]; -1 = sees nothing."""
        raise NotImplementedError

    def states(self, k: Tensor, nodes: Tensor, scope: Scope, edges: Tensor) -> Tensor:
        """h [B, G, M, edges, D] of every slot, the edges [B, G, M, edges] before it being given."""
        raise NotImplementedError

    def log_prob(self, k: Tensor, scope: Scope, edges: Tensor) -> Tensor:
        """[] log-probability of all edges, with gradient; memory linear in M."""
        nodes, (batch, groups, m, dim) = k @ self.node.to(k.dtype), k.shape
        h = self.states(k, nodes, scope, edges)
        chosen = nodes.gather(2, edges.clamp(min=0).flatten(2).unsqueeze(-1).expand(-1, -1, -1, dim))
        score = (h * chosen.view(h.shape)).sum(-1) * default_scale(dim)
        slots = h.permute(0, 1, 3, 2, 4).reshape(batch, groups * self.edges, m, dim)
        total = run(Dense(), slots, nodes, nodes[..., :1], scope).lse  # [B, G edges, M]
        total = total.view(batch, groups, self.edges, m).transpose(2, 3)
        return torch.where(edges < 0, 0.0, score - total).sum()

    def targets(self, h: Tensor, nodes: Tensor, scope: Scope, rows: slice, uniform: Tensor | None) -> Tensor:
        """[B, G, slots, n] visible keys for h [B, G, slots, n, D] of the sources `rows`; -1 = sees nothing.

        The best in evaluation; else that at which the probabilities sum to `uniform` [B, G, slots, n]. In
        evaluation, float64 scores are compared in float32: equal nodes tie, and the first is taken.
        """
        scores = h @ nodes.unsqueeze(2).transpose(-1, -2) * default_scale(h.shape[-1])
        seen = visible_to(scope, rows, nodes.shape[2], h.device).unsqueeze(2)  # [B or 1, 1, 1, n, M]
        scores = scores.masked_fill(~seen, float("-inf"))
        if uniform is None:
            found = scores.float().argmax(-1)
        else:
            reached = scores.softmax(-1).nan_to_num(0.0).cumsum(-1)
            bound = (uniform * reached[..., -1]).to(reached.dtype)
            found = torch.searchsorted(reached, bound.unsqueeze(-1)).squeeze(-1)
        return found.masked_fill(~seen.any(-1), -1)


def visible_to(scope: Scope, rows: slice, m: int, device: torch.device) -> Tensor:
    """[B or 1, 1, n, M] what the keys in `rows` see as queries; padding sees nothing."""
    documents = scope.documents_of_keys()
    own = None if documents is None else documents[:, rows]
    part = Scope(scope.causal, scope.key_is_real, own, documents, query_start=rows.start)
    seen = part.visible(rows.stop - rows.start, m, device)
    return seen if scope.key_is_real is None else seen & scope.key_is_real[:, None, rows, None]


def dtype_of(k: Tensor, noise: Noise | None) -> torch.dtype:
    """In what edges are chosen: samples need not tie, so they may be as narrow as float32."""
    return torch.float64 if noise is None else torch.promote_types(k.dtype, torch.float32)


def drawn(noise: Noise | None, scope: Scope, k: Tensor, edges: int) -> Tensor | None:
    """[B, G, edges, M] the numbers that decide about the edges of all tokens; None in evaluation."""
    if noise is None:
        return None
    slots = torch.arange(edges, device=k.device)
    return noise.uniform(scope.ranks_of_keys(k.shape[2], k.device), slots, (k.shape[0], k.shape[1]))


class ParallelPredictor(Predictor):
    """One step for all sources: every slot has a map of its own. Ours, not of the paper."""

    def __init__(self, sizes: tuple[int, int, int], generator: torch.Generator) -> None:
        super().__init__(sizes, generator)
        groups, dim, edges = sizes
        self.slot = nn.Parameter(normal((groups, edges, dim, dim), generator, dim**-0.5))
        self.slot_bias = nn.Parameter(torch.zeros(groups, edges, 1, dim))

    def choose(self, k: Tensor, scope: Scope, sources: slice, noise: Noise | None) -> Tensor:
        """In stretches of sources, so that memory stays linear."""
        k = k.to(dtype_of(k, noise))
        slot, bias, uniform = (
            self.slot.to(k.dtype),
            self.slot_bias.to(k.dtype),
            drawn(noise, scope, k, self.edges),
        )
        nodes = k @ self.node.to(k.dtype)
        step = max(1, SCORES_ALIVE // (k[..., 0].numel() * self.edges))
        found = []
        for start in range(sources.start, sources.stop, step):
            rows = slice(start, min(start + step, sources.stop))
            part = None if uniform is None else uniform[..., rows]
            found.append(self.targets(k[:, :, None, rows] @ slot + bias, nodes, scope, rows, part))
        return torch.cat(found, -1).transpose(2, 3)

    def states(self, k: Tensor, nodes: Tensor, scope: Scope, edges: Tensor) -> Tensor:
        """Out of the sources alone."""
        return (k.unsqueeze(2) @ self.slot.to(k.dtype) + self.slot_bias.to(k.dtype)).transpose(2, 3)
