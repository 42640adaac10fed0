"""Talking heads: heads mix their scores before the softmax, and their weights behind it.

Paper    Shazeer, Lan, Cheng, Ding, Hou 2020, "Talking-Heads Attention", arXiv 2003.02436.
Formula  S'_h = sum_g P[g, h] S_g; A = softmax(mask(S' + biases)); A'_g = sum_h W[h, g] A_h; O_g = A'_g V_g
Cost     before: H times the score product; after: H times the value product
Differs  No map of scores is made: S'_h is the product of one wide query with the keys of all heads beside
         each other, and A_h attends to the values of all heads beside each other. So it runs on every plan
         whose kernel takes q, k and v as given; where heads have plans of their own, a mixed score counts in
         the plan of the head it is mixed for. Mixing starts at the identity. dynamic: the matrices move with
         the queries of the token, as in section 5 of the paper with x; the part from the memory is left out.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from mapformers.core.card import Card, option, options_of
from mapformers.core.draw import linear
from mapformers.core.errors import require_known
from mapformers.core.score import Call, Memory, ScoreSite, ScoreTerm
from mapformers.kernels.softmax import expand_heads

PLACES = ("both", "before", "after")
DYNAMIC_GAIN = 1e-2  # of the maps from a token to its own mixing matrices


@dataclass(frozen=True)
class TalkingHeadsConfig:
    """Options of talking_heads."""

    mix: Literal["both", "before", "after"] = option(
        "both", "scores before the softmax, weights after, or both"
    )
    dynamic: bool = option(False, "mixing matrices depend on the token that asks")

    def __post_init__(self) -> None:
        require_known("talking_heads", "mix", self.mix, PLACES)


class TalkingHeads(ScoreTerm):
    """Mixes the heads on both sides of the softmax."""

    Config = TalkingHeadsConfig
    card = Card(
        name="talking_heads",
        kind="score",
        family="improved multi-head",
        paper="Shazeer et al. 2020, arXiv 2003.02436",
        formula="softmax(P (q.k)) mixed by W, P and W over the heads",
        cost="H times the products of scores and values",
        summary="heads exchange scores before the softmax and weights after it",
        options=options_of(TalkingHeadsConfig),
    )

    def __init__(self, config: TalkingHeadsConfig, site: ScoreSite, generator: torch.Generator) -> None:
        super().__init__()
        self.changes_scores = config.mix != "after"
        heads, width = site.heads, site.heads * site.head_dim
        self.before = nn.Parameter(torch.eye(heads)) if config.mix != "after" else None  # [from g, to h]
        self.after = nn.Parameter(torch.eye(heads)) if config.mix != "before" else None  # [from h, to g]
        moved = 0 if not config.dynamic else heads * heads
        self.move_before = (
            linear(width, moved, generator, gain=DYNAMIC_GAIN) if moved and config.mix != "after" else None
        )
        self.move_after = (
            linear(width, moved, generator, gain=DYNAMIC_GAIN) if moved and config.mix != "before" else None
        )

    def bind(self, call: Call, memory: Memory | None = None) -> tuple[Call, Memory | None]:
        """Wide queries and keys, wide values, and the mixing of the outputs."""
        heads = call.q.shape[1]
        if self.before is not None:
            mix = self._matrices(self.before, self.move_before, call.plain_q).to(call.q.dtype)
            # [B, N, g, h] times q of head g, laid beside each other; kernels divide by the root of the width
            q = torch.einsum("bngh,bgnd->bhngd", mix, call.q).flatten(3) * math.sqrt(heads)
            k = rearrange(expand_heads(call.k, heads), "b g m d -> b 1 m (g d)")

            def beside_others(keys: Tensor, first: int) -> Tensor:
                """The others have no key there, so they say nothing of it."""
                wide = keys.new_zeros(keys.shape[0], 1, keys.shape[2], heads, keys.shape[3])
                wide[:, 0, :, first : first + keys.shape[1]] = keys.transpose(1, 2)
                return wide.flatten(3)

            call = replace(call, q=q, k=k, own_keys=(*call.own_keys, beside_others))
        if self.after is not None:
            mix = self._matrices(self.after, self.move_after, call.plain_q)
            v = rearrange(expand_heads(call.v, heads), "b g m e -> b 1 m (g e)")

            def mixed(heads_out: Tensor) -> Tensor:
                wide = heads_out.unflatten(-1, (heads, -1))  # [B, h, N, g, E]
                return torch.einsum("bnhg,bhnge->bgne", mix.to(wide.dtype), wide)

            call = replace(call, v=v, finish=(mixed, *call.finish))
        return call, None

    @staticmethod
    def _matrices(fixed: Tensor, move: nn.Linear | None, plain_q: Tensor) -> Tensor:
        """[B or 1, N or 1, H, H]."""
        if move is None:
            return fixed[None, None].expand(plain_q.shape[0], plain_q.shape[2], -1, -1)
        moved = move(rearrange(plain_q, "b h n d -> b n (h d)"))
        return fixed + moved.unflatten(-1, fixed.shape)
