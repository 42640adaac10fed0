"""SAC (sparse adaptive connection): a predictor draws a few edges for every token, which sees those alone.

Paper    Li, Meng, Zhou, Han, Wu, Li 2020, "SAC: Accelerating and Structuring Self-Attention via Sparse
         Adaptive Connection", NeurIPS, arXiv 2003.09833. We found no published code.
Formula  w[i, j] = softmax_j(q_i . k_j / sqrt(D)) over j = i and the targets of i; target t of i is drawn from
         softmax_j(h_{i,t} . e_j / sqrt(D)) over the tokens that i may see, e = k W, h from an LSTM over the
         nodes of sources and targets so far. The predictor learns by the policy gradient (core/policy.py)
         from `losses()["edges"]`, the log-probability of all edges
Cost     attention O(N edges D); the predictor O(N^2 edges D), with the LSTM in N edges steps one after
         another; extra memory O(N edges). Decoding walks through the whole prefix for every token
Differs  Every token gets the same number of edges, in the order of the tokens (the paper's variant in which
         all nodes are connected); the LSTM reads source and last target at once; one graph for each
         key/value head. Causal: a token reaches back only, so a prefix keeps its edges. Training draws
         by numbers out of a seed and the number of updates, evaluation takes the best.
         predictor="parallel" is ours: one map for each slot instead of the LSTM.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mapformers.core.card import RANGES, Card, option, options_of
from mapformers.core.errors import require, require_known
from mapformers.core.mechanism import Cost, Mechanism, Shape
from mapformers.core.plans import Plan, Windows
from mapformers.core.scope import Scope
from mapformers.kernels.softmax import expand_heads, masked_softmax, scaled_scores
from mapformers.mechanisms.content.sac_definition import defined_edges
from mapformers.mechanisms.content.sac_lstm import LstmPredictor
from mapformers.mechanisms.content.sac_predictor import Noise, ParallelPredictor, Predictor
from mapformers.mechanisms.sparse.draws import draw_seed

Drawn = tuple[Callable[[], Tensor | None], Tensor | None]  # for which keys, the edges
NOTHING_DRAWN: Drawn = (lambda: None), None
PREDICTORS: dict[str, type[Predictor]] = {"lstm": LstmPredictor, "parallel": ParallelPredictor}


@dataclass(frozen=True)
class SacConfig:
    """Options of sac."""

    edges: int = option(4, "that the predictor draws for every token")
    predictor: Literal["lstm", "parallel"] = option("lstm", "parallel = all sources at once, ours")

    def __post_init__(self) -> None:
        require(self.edges >= 1, f"sac: edges must be 1 or more, got {self.edges}; the default is 4")
        require_known("sac", "predictor", self.predictor, PREDICTORS)


class Sac(Mechanism):
    """Attention along predicted edges."""

    Config = SacConfig
    config: SacConfig
    predictor: Predictor
    seed: Tensor
    updates: Tensor
    plans_from_history = True  # the LSTM has read the whole prefix
    policy_names = ("edges",)
    card = Card(
        name="sac",
        family="sparse, content-based",
        paper="Li et al. 2020, arXiv 2003.09833",
        formula="softmax over j = i and the edges of i, drawn from softmax_j(h . e_j / sqrt(D)), h an LSTM",
        cost="time O(N^2 edges D) in the predictor, O(N edges D) in attention; memory O(N edges)",
        summary="every token sees the few tokens that a predictor, trained by policy gradient, links it to",
        supports=RANGES,
        options=options_of(SacConfig),
    )

    def __init__(self, config: SacConfig | None = None) -> None:
        super().__init__(config)
        self.register_buffer("seed", torch.zeros((), dtype=torch.long))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self._drawn = NOTHING_DRAWN

    def build(self, shape: Shape, generator: torch.Generator) -> None:
        """The predictor, and the seed of what it draws in training."""
        sizes = (shape.kv_heads, shape.head_dim, self.config.edges)
        self.predictor = PREDICTORS[self.config.predictor](sizes, generator)
        self.seed = draw_seed(generator)

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """Every key is a segment of its own; a query names its own and those of its edges."""
        n, m = q.shape[2], k.shape[2]
        edges = self._edges(k, scope, slice(scope.query_start, scope.query_start + n))
        if self.training:  # `losses` follows on the same keys, and need not draw again
            self._drawn = weakref.ref(k), edges
        named = [scope.query_index(n, q.device).expand_as(edges[..., 0])]
        for edge in edges.unbind(-1):
            again = torch.stack([edge == other for other in named]).any(0)
            named.append(edge.masked_fill(again, -1))  # every key once
        return Windows(
            before=None,
            after=0 if scope.causal else None,
            query_segment=expand_heads(torch.stack(named, -1), q.shape[1]),
            key_segment=torch.arange(m, device=q.device)[None, None],
        )

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """The matrix of edges, drawn one by one, and its diagonal."""
        n, m = q.shape[2], k.shape[2]
        linked = defined_edges(self.predictor, k, scope, self._noise())  # [B, G, M, M] bool
        rows = linked[:, :, scope.query_start : scope.query_start + n]
        own = scope.query_index(n, q.device)[:, None] == torch.arange(m, device=q.device)
        seen = expand_heads(rows | own, q.shape[1]) & scope.visible(n, m, q.device)
        return masked_softmax(scaled_scores(q, k), seen)

    def losses(self, q: Tensor, k: Tensor, scope: Scope) -> dict[str, Tensor]:
        """The log-probability of all edges of this forward: a policy, to be weighted by the task's loss."""
        (drawn_for, edges), self._drawn = self._drawn, NOTHING_DRAWN
        if edges is None or drawn_for() is not k:
            edges = self._edges(k, scope, slice(0, k.shape[2]))
        return {"edges": self.predictor.log_prob(k.detach(), scope, edges)}

    def update_centroids(self) -> None:
        """Other draws from the next step of training on."""
        self.updates = self.updates + int(self.training)

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """The predictor's maps and scores of all pairs, and the pairs along edges at most."""
        edges, recurrent = self.config.edges, self.config.predictor == "lstm"
        maps = n * dim + n * edges * dim * (12 if recurrent else 1)
        seen = n * edges * n
        pairs = n + sum(min(edges, i if causal else n - 1) for i in range(n))
        return Cost(
            flops=batch * heads * dim * (2.0 * maps + 2.0 * seen + 4.0 * pairs),
            bytes=batch * heads * n * (8.0 * edges + 8.0 * (edges + 1)),
        )

    @torch.no_grad()
    def _edges(self, k: Tensor, scope: Scope, sources: slice) -> Tensor:
        """[B, G, n, edges] keys; -1 = none."""
        return self.predictor.choose(k, scope, sources, self._noise())

    def _noise(self) -> Noise | None:
        return Noise(self.seed, self.updates) if self.training else None
