"""Informer (ProbSparse): the few queries that tell keys apart attend; all others take the mean of the values.

Paper    Zhou, Zhang, Peng, Zhang, Li, Xiong, Zhang 2021, "Informer", AAAI, arXiv 2012.07436, section 3.1.
Formula  M_i = max_{j in S_i} s_ij - mean_{j in S_i} s_ij with s = q k^T / sqrt(D) and S_i a random sample of
         U = factor ceil(ln(1 + L)) keys, drawn for each query, with replacement; L the document's length;
         w[i] = softmax_j(s_ij) for the factor ceil(ln(1 + L)) queries of largest M, w[i, j] = 1 / L else
Cost     time O(N log N D), extra memory O(N D)
Differs  Under causal=True the paper lets all queries compete, by samples of all keys: later tokens decide
         whether an earlier row attends (variant="paper"). Here S_i then holds keys at or before i, and a row
         attends where M_i exceeds a stored threshold of its head, which follows in training the quantile
         that leaves as many rows as in the paper. Other rows take the mean over the keys that they may see;
         the official code has their sum there (fill="cumsum"), which grows with the place. It divides the
         sum over S_i by L, here by U. Samples come from a stored seed, the head, the rank and the draw: the
         same in training, evaluation and decoding, and never padding. Queries choose before they are
         rotated. Decoding keeps every key.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mapformers.core.card import RANGES, Card, option, options_of
from mapformers.core.errors import require, require_known
from mapformers.core.mechanism import Cost, Mechanism, Shape
from mapformers.core.plans import Features, Plan, WeightedSum, Windows
from mapformers.core.scope import Scope
from mapformers.kernels.softmax import masked_softmax, scaled_scores
from mapformers.mechanisms.content.leak import refuse_leak, warn_of_leak
from mapformers.mechanisms.prototypes.chosen_rows import chosen_by_definition, chosen_rows
from mapformers.mechanisms.prototypes.sampled_keys import SampledKeys, kept_of, sparsity_of_some
from mapformers.mechanisms.prototypes.threshold import Threshold
from mapformers.mechanisms.sparse.draws import draw_seed


@dataclass(frozen=True)
class InformerConfig:
    """Options of informer."""

    factor: int = option(5, "c: c ceil(ln(1 + L)) queries attend, and as many keys are sampled for each")
    fill: Literal["mean", "cumsum"] = option("mean", "of what other queries may see; cumsum = the sum")
    threshold: float = option(3.0, "a row attends where M exceeds it, until training moves it; causal only")
    decay: float = option(0.99, "of the moving average of the threshold")
    variant: Literal["strict", "paper"] = option("strict", "how rows are chosen under causal=True")
    allow_selection_leak: bool = option(False, 'let variant="paper" run under causal=True, where it leaks')

    def __post_init__(self) -> None:
        require(self.factor >= 1, f"informer: factor must be 1 or more, got {self.factor}; use factor=5")
        require(0 <= self.decay < 1, f"informer: decay must lie in [0, 1), got {self.decay}; use decay=0.99")
        require(
            abs(self.threshold) < float("inf"),
            f"informer: threshold must be finite, got {self.threshold}; use threshold=3.0",
        )
        require_known("informer", "fill", self.fill, ("mean", "cumsum"))
        require_known("informer", "variant", self.variant, ("strict", "paper"))


class Informer(Mechanism):
    """A few queries attend, the others take a mean."""

    Config = InformerConfig
    one_softmax = False
    config: InformerConfig
    seed: Tensor
    plans_from_history = True  # samples reach back to every key
    card = Card(
        name="informer",
        family="prototype",
        paper="Zhou et al. 2021, arXiv 2012.07436",
        formula="softmax for queries of largest max_S(s_i) - mean_S(s_i), S a sample of keys; else the mean",
        cost="time O(N log N D), memory O(N D)",
        summary="the few queries that tell keys apart attend; the others take the mean of the values",
        supports=RANGES - {"score", "rows_sum_to_one"},
        options=options_of(InformerConfig),
    )

    def __init__(self, config: InformerConfig | None = None) -> None:
        super().__init__(config)
        warn_of_leak(self.config.allow_selection_leak, "informer", 'variant="paper"')
        self.register_buffer("seed", torch.zeros((), dtype=torch.long))

    def build(self, shape: Shape, generator: torch.Generator) -> None:
        """The seed of the samples, and the threshold of each head."""
        self.seed = draw_seed(generator)
        self.threshold = Threshold(shape.heads, self.config.threshold, self.config.decay)

    def check_causal(self, causal: bool) -> None:
        """The paper's form is causal only for those who ask for its leak."""
        leaks = causal and self.config.variant == "paper" and not self.config.allow_selection_leak
        refuse_leak(leaks, "informer", 'variant="paper"', 'variant="strict"')

    def can_decode(self) -> bool:
        """The paper's form has no exact decoding: later tokens change earlier outputs."""
        return self.config.variant == "strict"

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """Chosen rows see all keys; one constant feature makes the mean of the others."""
        chosen = self._rows(q, k, scope, chosen_rows)  # [B, H, N]
        sampled = self._sampled(scope, q, k)
        seen = sampled.rank + 1 if scope.causal else sampled.length
        number = seen if self.config.fill == "cumsum" else torch.ones_like(seen)
        attend = Windows(before=None, after=0 if scope.causal else None, query_segment=chosen.long() - 1)
        fill = Features(torch.ones_like(q[..., :1]), torch.ones_like(k[..., :1]))
        weights = torch.stack((chosen.long(), (~chosen).long() * number[:, None]), -1)
        return WeightedSum((attend, fill), weights)

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """Softmax or fill, row by row; which of them is read off the matrix of all scores."""
        visible = scope.visible(q.shape[2], k.shape[2], q.device)
        number = 1 if self.config.fill == "cumsum" else visible.sum(-1, keepdim=True).clamp(min=1)
        fill = visible.to(q.dtype) / number
        chosen = self._rows(q, k, scope, chosen_by_definition)
        return torch.where(chosen.unsqueeze(-1), masked_softmax(scaled_scores(q, k), visible), fill)

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """The scores with samples, the rows that attend (as many as in the paper), and the mean."""
        lengths = torch.arange(1, n + 1) if causal and self.config.variant == "strict" else torch.tensor([n])
        draws = self.config.factor * float(kept_of(lengths).double().mean()) * n
        rows = min(self.config.factor * int(kept_of(torch.tensor(n))), n)
        pairs = rows * ((n + 1) / 2 if causal else n)
        flops = dim * (2.0 * draws + 4.0 * pairs + 4.0 * n)
        return Cost(batch * heads * flops, 24.0 * batch * heads * n * dim)

    def observe(self, q: Tensor, k: Tensor, scope: Scope) -> None:
        """The quantile of M in this forward, over some of the real queries."""
        if self._by_threshold(scope):
            found, share = sparsity_of_some(q, k, self._sampled(scope, q, k), scope.key_is_real)
            self.threshold.observe(found, share)

    def update_centroids(self) -> None:
        """Move the threshold; after the optimiser step."""
        self.threshold.update()

    def telemetry(self) -> dict[str, float]:
        """sparsity_threshold: mean over the heads."""
        return {"sparsity_threshold": float(self.threshold.value.mean())}

    def _by_threshold(self, scope: Scope) -> bool:
        return scope.causal and self.config.variant == "strict"

    def _rows(self, q: Tensor, k: Tensor, scope: Scope, rule: Callable[..., Tensor]) -> Tensor:
        threshold = self.threshold.value[:, None] if self._by_threshold(scope) else None
        return rule(q, k, scope, self._sampled(scope, q, k), threshold)

    def _sampled(self, scope: Scope, q: Tensor, k: Tensor) -> SampledKeys:
        sizes = (q.shape[2], k.shape[2])
        return SampledKeys.of(self.seed, scope, sizes, self.config.factor, self._by_threshold(scope))
