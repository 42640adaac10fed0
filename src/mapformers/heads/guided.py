"""Guided attention: some heads are asked to look at a fixed place, less and less as training goes on.

Paper    Deshpande, Narasimhan 2020, "Guiding Attention for Self-Supervised Learning with Transformers",
         Findings of EMNLP, arXiv 2010.02399.
Formula  s(t) mean over guided heads and queries of sum_j (A[i, j] - P[i, j])^2, P one-hot at the same, the
         next, the previous or the first token; s is 1 for `hold` steps and falls to 0 over `fade` more
Cost     three score products
Differs  The squares come from log-sum-exps: sum_j A^2 = exp(lse(2 S) - 2 lse(S)), and the weight of the place
         from one over that place alone. measure=entries divides by the number of keys too, as the authors'
         code does, which makes the weight depend on the length; rows does not. Padding does not count. A
         query without such a place (the first has no previous) is asked for nothing there, as in the code.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mapformers.core.card import Card, option, options_of
from mapformers.core.errors import require, require_known
from mapformers.core.score import Pairs, ScoreSite
from mapformers.heads.head_loss import Changed, HeadLoss, Heads, doubled, mean_over
from mapformers.kernels.shares import Share

PLACES = ("same", "next", "previous", "first")


@dataclass(frozen=True)
class GuidedConfig:
    """Options of guided."""

    patterns: str = option("previous=1 first=1", "how many heads look where; the first heads come first")
    measure: Literal["rows", "entries"] = option("rows", "what the squares are averaged over")
    hold: int = option(20_000, "optimiser steps at full weight")
    fade: int = option(80_000, "steps over which the weight falls to 0; 0 = never")

    def __post_init__(self) -> None:
        require_known("guided", "measure", self.measure, ("rows", "entries"))
        for name in ("hold", "fade"):
            value = getattr(self, name)
            require(value >= 0, f"guided: {name} must be 0 or more, got {value}; use 20000 for example")
        self.places()

    def places(self) -> tuple[str, ...]:
        """Where each guided head looks."""
        found: list[str] = []
        for word in self.patterns.split():
            place, _, count = word.partition("=")
            require_known("guided", "pattern", place, PLACES)
            require(
                count.isdigit(),
                f"guided: patterns must read 'previous=1 first=2', got {self.patterns!r}; give whole numbers",
            )
            found += [place] * int(count)
        require(bool(found), f"guided: patterns must name a head, got {self.patterns!r}; use 'previous=1'")
        return tuple(found)


class Guided(HeadLoss):
    """How far some heads are from looking at one place."""

    Config = GuidedConfig
    loss_weights = {"guided": 1.0}  # noqa: RUF012
    reads_weights = True
    card = Card(
        name="guided",
        kind="loss",
        family="improved multi-head",
        paper="Deshpande and Narasimhan 2020, arXiv 2010.02399",
        formula="s(t) mean_i sum_j (A[i,j] - P[i,j])^2 over the guided heads",
        cost="three score products",
        summary="some heads are asked to look at a fixed place, for a while",
        options=options_of(GuidedConfig),
    )
    steps: Tensor

    def __init__(self, config: GuidedConfig, site: ScoreSite, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def check(self, site: ScoreSite) -> None:
        """As many heads as are asked for, none of them for what it may not see."""
        places = self.config.places()
        require(
            len(places) <= site.heads,
            f"guided: patterns must name at most heads={site.heads} heads, got {len(places)}; name fewer",
        )
        require(
            not site.causal or "next" not in places,
            "guided: pattern 'next' needs causal=False, got causal=True; use 'previous'",
        )

    def forward(self, heads: Heads) -> dict[str, Tensor]:
        """The mean of the squares, annealed."""
        places = self.config.places()
        guided = slice(0, len(places))
        lse = heads.log_sums()[:, guided]
        seen = lse.isfinite()
        lse = torch.where(seen, lse, 0.0)
        twice = heads.log_sums(doubled, own_keys=False)[:, guided]
        seen = seen & twice.isfinite()
        squares = torch.where(seen, (torch.where(seen, twice, 0.0) - 2 * lse).exp(), 0.0)
        there = heads.log_sums(self._at_place, own_keys=False)[:, guided]
        hit = there.isfinite()
        weight = torch.where(hit, (torch.where(hit, there, 0.0) - lse).exp(), 0.0)
        loss = squares - 2 * weight + self._exists(heads).to(weight.dtype)  # [B, guided, N]
        if self.config.measure == "entries":
            loss = loss / heads.call.k.shape[2]
        return {"guided": self.strength() * mean_over(heads.rows(), loss.mean(1))}

    def strength(self) -> Tensor:
        """s(t), between 1 and 0."""
        if not self.config.fade:
            return torch.ones((), device=self.steps.device)
        return (1 - (self.steps - self.config.hold) / self.config.fade).clamp(0, 1)

    def after_step(self) -> None:
        """Counts optimiser steps."""
        self.steps += 1

    def _at_place(self, share: Share) -> Share:
        """Scores of the place alone."""
        places = [PLACES.index(place) for place in self.config.places()]
        wanted = torch.tensor(places, device=share.q.device)

        def only(tile: Tensor, pairs: Pairs) -> Tensor:
            place = wanted[(pairs.head + share.first).clamp(max=len(places) - 1)]
            offset = torch.where(place == 1, 1, torch.where(place == 2, -1, 0))
            target = torch.where(place == 3, 0, pairs.query + offset)
            return torch.where(pairs.key == target, tile, float("-inf"))

        return share._replace(bias=Changed(share.bias, only))

    def _exists(self, heads: Heads) -> Tensor:
        """[B, guided, N] whether there is such a token in the query's document."""
        scope, rows = heads.call.scope, heads.rows()
        at = scope.query_positions(rows.shape[1], rows.device).expand_as(rows)
        documents = torch.zeros_like(at) if scope.segments is None else scope.segments.expand_as(at)
        count = int(documents.max()) + 1
        last = at.new_full((at.shape[0], count), -1)
        last = last.scatter_reduce(1, documents, at.masked_fill(~rows, -1), "amax").gather(1, documents)
        always = torch.ones_like(rows)
        there = {"same": always, "next": at < last, "previous": at > 0, "first": always}
        return torch.stack([there[place] for place in self.config.places()], 1)
