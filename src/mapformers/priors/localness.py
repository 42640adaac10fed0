"""Localness: a Gaussian around a centre that the query predicts, in a window that it may predict too.

Paper    Yang, Tu, Wong, Meng, Chao, Zhang 2018, "Modeling Localness for Self-Attention Networks", EMNLP,
         arXiv 1810.10182.
Formula  score[h, i, j] -= (j - P_i)^2 / (2 s_i^2), s_i = D_i / 2; P_i = I sigmoid(u_p . tanh(W q_i));
         D_i: fixed = size; query = I sigmoid(u_d . tanh(W q_i)); layer = I sigmoid(u_d . tanh(W' mean_j k_j))
Cost     O(N D^2) for the predictions, O(1) per pair
Differs  I is the number of tokens that the query may see (causal), or of the real tokens of its document:
         neither padding nor batch mates count. The mean of the keys is over the same tokens. D is at least a
         hundredth of I, and the bias at least -1e4. centre=offset predicts P_i - i in (-I, I) instead.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mapformers.core.card import Card, option, options_of
from mapformers.core.draw import linear, normal
from mapformers.core.errors import require, require_known
from mapformers.core.score import Call, Memory, Pairs, ScoreSite, ScoreTerm
from mapformers.kernels.softmax import at_least_float32, expand_heads
from mapformers.priors.seen import SeenKeys, seen_counts

LOWEST = -1e4
NARROWEST = 1e-2  # of the tokens seen


@dataclass(frozen=True)
class LocalnessConfig:
    """Options of localness."""

    window: Literal["fixed", "layer", "query"] = option("query", "what says how wide the Gaussian is")
    size: int = option(10, "the fixed window, in tokens: two standard deviations")
    centre: Literal["predicted", "offset"] = option("predicted", "predict a position, or how far it is away")

    def __post_init__(self) -> None:
        require_known("localness", "window", self.window, ("fixed", "layer", "query"))
        require_known("localness", "centre", self.centre, ("predicted", "offset"))
        require(self.size >= 1, f"localness: size must be 1 or more, got {self.size}; use 10 for example")


class Localness(ScoreTerm):
    """A learned Gaussian prior."""

    Config = LocalnessConfig
    card = Card(
        name="localness",
        kind="score",
        family="attention with prior",
        paper="Yang et al. 2018, arXiv 1810.10182",
        formula="score[h,i,j] -= (j-P_i)^2 / (2 s_i^2), P and s predicted from q_i",
        cost="O(N D^2)",
        summary="a Gaussian around a centre that the query predicts",
        options=options_of(LocalnessConfig),
    )

    def __init__(self, config: LocalnessConfig, site: ScoreSite, generator: torch.Generator) -> None:
        super().__init__()
        self.config, self.causal = config, site.causal
        dim = site.head_dim
        self.hidden = linear(dim, dim, generator)
        self.to_centre = nn.Parameter(normal((site.heads, dim), generator, dim**-0.5))
        self.to_width = self.hidden_keys = None
        if config.window != "fixed":
            self.to_width = nn.Parameter(normal((site.heads, dim), generator, dim**-0.5))
        if config.window == "layer":
            self.hidden_keys = linear(dim, dim, generator)

    def bind(self, call: Call, memory: Memory | None = None) -> tuple[Call, Memory | None]:
        """Centres and widths of all queries, [B, H, N]."""
        q = at_least_float32(call.plain_q)
        keys = memory if isinstance(memory, SeenKeys) else SeenKeys()
        count = seen_counts(call.scope, q.shape[2], call.k.shape[2], q.device)
        count = count.to(q.dtype)[:, None]  # [B or 1, 1, N or 1]
        predicted = torch.tanh(self.hidden(q))
        share = _scored(predicted, self.to_centre).sigmoid()
        if self.config.centre == "offset":
            at = call.scope.query_positions(q.shape[2], q.device)[:, None]
            centre = at + count * (2 * share - 1)
        else:
            centre = count * share
        if self.to_width is None:
            width = torch.full_like(centre, float(self.config.size))
        elif self.hidden_keys is None:
            width = count * _scored(predicted, self.to_width).sigmoid()
        else:
            mean = keys.means(at_least_float32(expand_heads(call.plain_k, q.shape[1])), call.scope)
            width = count * _scored(torch.tanh(self.hidden_keys(mean)), self.to_width).sigmoid()
        deviation = torch.maximum(width, NARROWEST * count) / 2
        deviation = deviation.expand_as(centre)
        return call.add(Gaussians(centre, deviation)), keys


class Gaussians(ScoreTerm):
    """-(j - centre)^2 / (2 deviation^2) of every query, both [B, H, N]."""

    def __init__(self, centre: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.centre, self.deviation = centre, deviation

    def tile(self, pairs: Pairs) -> Tensor:
        """By the true position of the key."""
        assert pairs.query_row is not None
        row = pairs.query_row.clamp(min=0)
        batch = pairs.batch % self.centre.shape[0]
        away = (pairs.key - self.centre[batch, pairs.head, row]) / self.deviation[batch, pairs.head, row]
        return (-0.5 * away.square()).clamp(min=LOWEST)


def _scored(hidden: Tensor, to: Tensor) -> Tensor:
    """[B, H, N, D] times [H, D] to [B, H, N]."""
    return (hidden * to[:, None]).sum(-1)
