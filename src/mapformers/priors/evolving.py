"""Evolving attention: the scores of the layer below, mixed in and convolved with those of their neighbours.

Paper    Wang, Yang, Bai, Zhang, Bai, Yu, Zhang, Tong 2021, "Evolving Attention with Residual Convolutions",
         ICML, arXiv 2102.12895 (first as the Predictive Attention Transformer).
Formula  X = (1 - p) S_l + p Z_(l-1); Z_l = c act(conv3x3(X)) + (1 - c) X; A = softmax(Z_l); Z_1 = S_1
Cost     9 H^2 N M products and O(H N M) memory
Differs  The published code has no masks. Here what may not be seen is 0 before the convolution, and under
         causality row i reads rows i - 1 and i only: row i + 1 belongs to a later query. Neighbours are real
         tokens: padding between two does not part them. The convolution starts close to the identity, since a
         random one destroys the scores; prev_weight and conv_weight are p and c, which the paper and the
         code name the other way round.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mapformers.core.card import Card, option, options_of
from mapformers.core.draw import normal
from mapformers.core.errors import require, require_known
from mapformers.core.scope import Scope
from mapformers.core.score import ByQuery, Call, Memory, ScoreSite, ScoreTerm
from mapformers.priors.maps import KeysSoFar, key_row, raw_scores

ACTIVATIONS = {"relu": torch.relu, "leaky_relu": F.leaky_relu, "linear": lambda x: x}
START = 1e-2  # of the weights beside the identity


@dataclass(frozen=True)
class EvolvingConfig:
    """Options of evolving."""

    prev_weight: float = option(0.3, "weight of the layer below, 0 to 1")
    conv_weight: float = option(0.5, "weight of the convolution, 0 to 1")
    activation: Literal["relu", "leaky_relu", "linear"] = option("relu", "behind the convolution")

    def __post_init__(self) -> None:
        require_known("evolving", "activation", self.activation, ACTIVATIONS)
        for name in ("prev_weight", "conv_weight"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"evolving: {name} must lie in [0, 1], got {value}; use 0.3 for example")


@dataclass
class EvolvingMemory(KeysSoFar):
    """Besides the keys the mixed scores of the last real query [B, H, 1, M]."""

    row: Tensor | None = None

    def reorder(self, index: Tensor) -> None:
        """Batch rows in another order."""
        super().reorder(index)
        self.row = None if self.row is None else self.row.index_select(0, index)


class Evolving(ScoreTerm):
    """Scores that evolve from layer to layer."""

    Config = EvolvingConfig
    carries = True
    needs_map = True
    replaces_scores = True
    card = Card(
        name="evolving",
        kind="score",
        family="attention with prior",
        paper="Wang et al. 2021, arXiv 2102.12895",
        formula="X = (1-p) S + p Z_below; softmax(c act(conv(X)) + (1-c) X)",
        cost="O(H^2 N M), memory O(H N M)",
        summary="scores of the layer below, convolved; full attention only",
        options=options_of(EvolvingConfig),
    )

    def __init__(self, config: EvolvingConfig, site: ScoreSite, generator: torch.Generator) -> None:
        super().__init__()
        self.config, self.causal = config, site.causal
        heads = site.heads
        weight = normal((heads, heads, 2 if site.causal else 3, 3), generator, START)
        identity = torch.zeros(weight.shape[:2] + weight.shape[2:], device=weight.device)
        identity[torch.arange(heads), torch.arange(heads), 1, 1] = 1.0  # the row and column themselves
        self.weight = nn.Parameter(weight + identity)

    def bind(self, call: Call, memory: Memory | None = None) -> tuple[Call, Memory | None]:
        """All scores of this call; they travel on, before masks."""
        require(
            call.scope.causal == self.causal,
            f"evolving: was made for causal={self.causal}, got {call.scope.causal}; make another term",
        )
        kept = memory if isinstance(memory, EvolvingMemory) else EvolvingMemory()
        start = 0 if kept.keys is None else kept.keys.shape[2]
        own = raw_scores(call.q, kept.add(call.k, call.scope.key_is_real))  # [B, H, N, M]
        below, share = call.carry.scores, self.config.prev_weight
        mixed = own if below is None else (1 - share) * own + share * below
        scores = mixed
        if below is not None:
            scores = mixed + self.config.conv_weight * (
                self._convolved(mixed, call.scope, kept, start) - mixed
            )
        carry = replace(call.carry, scores=scores)
        return replace(call.without_scores(), carry=carry).add(ByQuery(scores, key_row)), kept

    def _convolved(self, scores: Tensor, scope: Scope, kept: EvolvingMemory, start: int) -> Tensor:
        """act(conv(scores)) over neighbours that are real; remembers the last row."""
        n, m, device = scores.shape[2], scores.shape[3], scores.device
        whole = replace(scope, key_is_real=kept.is_real, query_start=start, ranks=None)
        seen = whole.visible(n, m, device)
        assert kept.is_real is not None
        real_rows = kept.is_real[:, start:]
        shown = scores.masked_fill(~(seen & real_rows[:, None, :, None]), 0.0)
        documents = (
            torch.zeros_like(kept.is_real, dtype=torch.long) if scope.segments is None else scope.segments
        )
        documents = documents.expand(scores.shape[0], -1)
        row_documents = documents[:, start:]
        if kept.row is not None:
            shown = torch.cat([F.pad(kept.row, (0, m - kept.row.shape[3])), shown], 2)
            real_rows = F.pad(real_rows, (1, 0), value=True)
            row_documents = F.pad(row_documents, (1, 0))
        rows, columns = _places(real_rows, row_documents), _places(kept.is_real, documents)
        close = _brought_together(_brought_together(shown, rows).mT, columns).mT
        if self.causal:
            last = (real_rows.sum(1) - 1).clamp(min=0)
            kept.row = close[torch.arange(len(last)), :, last].unsqueeze(2).detach()
            kept.row = kept.row.gather(3, columns[:, None, None].expand(-1, scores.shape[1], 1, -1))
        padded = F.pad(close, (1, 1, 1, 0 if self.causal else 1))
        found = ACTIVATIONS[self.config.activation](F.conv2d(padded, self.weight.to(close.dtype)))
        rows = rows[:, rows.shape[1] - n :]
        found = found.gather(2, rows[:, None, :, None].expand(*found.shape[:2], -1, found.shape[3]))
        return found.gather(3, columns[:, None, None].expand(*found.shape[:3], -1))


def _places(is_real: Tensor, documents: Tensor) -> Tensor:
    """[B, N] where each token stands when padding is taken out and one place parts two documents.

    Padding stands behind all.
    """
    changes = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0))
    place = is_real.long().cumsum(1) - 1 + changes.long().cumsum(1)
    behind = place.amax(1, keepdim=True) + 2
    return torch.where(is_real, place, behind)


def _brought_together(x: Tensor, places: Tensor) -> Tensor:
    """The rows of [B, H, N, M] at their places, zeros in all others."""
    count = int(places.max()) + 1
    source = places.new_full((places.shape[0], count), x.shape[2])  # a row of zeros, appended
    source = source.scatter(1, places, torch.arange(places.shape[1], device=x.device).expand_as(places))
    x = F.pad(x, (0, 0, 0, 1))
    return x.gather(2, source[:, None, :, None].expand(*x.shape[:2], -1, x.shape[3]))
