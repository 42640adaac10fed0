"""Synthesizer: scores that come from the query alone, or from a table, instead of products with keys.

Paper    Tay, Bahri, Metzler, Juan, Zhao, Zheng 2021, "Synthesizer: Rethinking Self-Attention", ICML,
         arXiv 2005.00743.
Formula  dense: S_i = relu(q_i W_1 + b_1) W_2 + b_2 in R^limit; random: S = R[h], a table; factorised_dense:
         S_ij = a_i[j mod rank] b_i[j div rank]; factorised_random: S = R_1 R_2^T of rank `rank`
         mix: (1 - s(c)) q.k / sqrt(D) + s(c) S with a learned c, s the sigmoid
Cost     dense O(N D limit), the others O(1) or O(rank) per pair; parameters O(H limit D) or O(H limit^2)
Differs  As in the authors' code, the dense forms read the projected query of a head, and the mixture has one
         scalar for a layer. The query is the one before rotary positions. Keys beyond `limit` are an error.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from mapformers.core.card import Card, option, options_of
from mapformers.core.draw import normal
from mapformers.core.errors import require, require_known
from mapformers.core.score import ByQuery, Call, Memory, Pairs, ScoreSite, ScoreTerm

KINDS = ("dense", "random", "factorised_dense", "factorised_random")


@dataclass(frozen=True)
class SynthesizerConfig:
    """Options of synthesizer."""

    kind: Literal["dense", "random", "factorised_dense", "factorised_random"] = option(
        "dense", "from the query, from a table, or either in two factors"
    )
    limit: int = option(512, "longest sequence")
    rank: int = option(8, "of the factorised kinds: rank of the table, or length of the first factor")
    mix: bool = option(False, "beside q . k, in learned shares, instead of in its place")
    trained: bool = option(True, "whether the tables of the random kinds learn")

    def __post_init__(self) -> None:
        require_known("synthesizer", "kind", self.kind, KINDS)
        for name in ("limit", "rank"):
            value = getattr(self, name)
            require(value >= 1, f"synthesizer: {name} must be 1 or more, got {value}; use 8 for example")


class Synthesizer(ScoreTerm):
    """Synthetic scores."""

    Config = SynthesizerConfig
    card = Card(
        name="synthesizer",
        kind="score",
        family="attention with prior",
        paper="Tay et al. 2021, arXiv 2005.00743",
        formula="S_i = relu(q_i W_1 + b_1) W_2 + b_2, or S = R[h]; alone or mixed with q.k",
        cost="O(N D limit), or O(1) per pair",
        summary="scores from the query alone or from a table",
        options=options_of(SynthesizerConfig),
    )

    def __init__(self, config: SynthesizerConfig, site: ScoreSite, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.replaces_scores = not config.mix
        heads, dim, limit, rank = site.heads, site.head_dim, config.limit, config.rank
        self.share = nn.Parameter(torch.zeros(())) if config.mix else None

        def drawn(*shape: int, trained: bool = True) -> nn.Parameter:
            return nn.Parameter(normal(shape, generator, shape[-2] ** -0.5), requires_grad=trained)

        if "random" in config.kind:
            factors = ((heads, limit, limit),) if config.kind == "random" else ((heads, limit, rank),) * 2
            self.tables = nn.ParameterList(
                nn.Parameter(normal(shape, generator, shape[-1] ** -0.25), requires_grad=config.trained)
                for shape in factors
            )
            return
        widths = (limit,) if config.kind == "dense" else (rank, -(-limit // rank))
        self.inner = drawn(heads, dim, dim)
        self.inner_bias = nn.Parameter(torch.zeros(heads, 1, dim))
        self.outer = nn.ParameterList(drawn(heads, dim, width) for width in widths)
        self.outer_bias = nn.ParameterList(nn.Parameter(torch.zeros(heads, 1, width)) for width in widths)

    def bind(self, call: Call, memory: Memory | None = None) -> tuple[Call, Memory | None]:
        """The synthetic scores of this call beside q . k, or in its place."""
        scope, limit = call.scope, self.config.limit
        device = call.q.device
        queries, keys = (
            scope.query_positions(call.q.shape[2], device),
            scope.positions_of_keys(call.k.shape[2], device),
        )
        last = int(torch.maximum(queries.max(), keys.max()))
        require(
            last < limit,
            f"synthesizer: limit must exceed every position, got position {last} and limit={limit}; "
            "raise limit or shorten the sequence",
        )
        scores = self._of_queries(call.plain_q) if "dense" in self.config.kind else self
        if self.share is None:
            return call.without_scores().add(scores), None
        share = self.share.sigmoid()
        q = call.q * (1 - share).to(call.q.dtype)
        return replace(call, q=q).add(_Scaled(scores, share)), None

    def tile(self, pairs: Pairs) -> Tensor:
        """From the tables of the random kinds."""
        if len(self.tables) == 1:
            return self.tables[0][pairs.head, pairs.query, pairs.key]
        of_query, of_key = self.tables[0][pairs.head, pairs.query], self.tables[1][pairs.head, pairs.key]
        return (of_query * of_key).sum(-1)

    def _of_queries(self, q: Tensor) -> ScoreTerm:
        """The dense kinds: what every query says of all positions."""
        hidden = torch.relu(q @ self.inner.to(q.dtype) + self.inner_bias.to(q.dtype))
        parts = [
            hidden @ outer.to(q.dtype) + bias.to(q.dtype)
            for outer, bias in zip(self.outer, self.outer_bias, strict=True)
        ]
        if len(parts) == 1:
            return ByQuery(parts[0], lambda pairs: pairs.key)
        rank = self.config.rank
        by_rest = ByQuery(parts[0], lambda pairs: pairs.key % rank)
        by_block = ByQuery(parts[1], lambda pairs: pairs.key // rank)
        return _Product(by_rest, by_block)


class _Scaled(ScoreTerm):
    def __init__(self, term: ScoreTerm, share: Tensor) -> None:
        super().__init__()
        self.scores, self.by = [term], share  # a list: no second owner of the parameters

    def tile(self, pairs: Pairs) -> Tensor:
        return self.scores[0].tile(pairs) * self.by


class _Product(ScoreTerm):
    def __init__(self, first: ScoreTerm, second: ScoreTerm) -> None:
        super().__init__()
        self.first, self.second = first, second

    def tile(self, pairs: Pairs) -> Tensor:
        return self.first.tile(pairs) * self.second.tile(pairs)
