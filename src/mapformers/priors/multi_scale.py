"""Multi-scale attention: each head sees a window of its own scale around the query.

Paper    Guo, Qiu, Liu, Xue, Zhang 2020, "Multi-Scale Self-Attention for Text Classification", AAAI 34,
         arXiv 1912.00544.
Formula  score[h, i, j] = -inf where |i - j| > scale_h // 2; causal: the half behind the query remains
Cost     O(1) per pair; with `full` or a band, pairs beyond the largest scale are not computed
Differs  Heads per scale: H softmax(z), z of the k-th smallest of K scales = alpha (K - k) / layer, rounded by
         largest remainder, scales in the order given; so low layers lean to small scales, as in the paper, in
         numbers of our own. Scales are tokens, not shares of the length. The classification node is left out.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mapformers.core.card import Card, option, options_of
from mapformers.core.errors import require
from mapformers.core.score import DistanceTerm, ScoreSite
from mapformers.priors.numbers import numbers_in


@dataclass(frozen=True)
class MultiScaleConfig:
    """Options of multi_scale."""

    scales: str = option("1,3,16,64", "widths of the windows in tokens, the query's own among them")
    alpha: float = option(0.0, "how much low layers prefer small scales; 0 = heads spread evenly")
    layer: int = option(1, "the place of the layer in its stack, from 1 on; matters with alpha")

    def __post_init__(self) -> None:
        scales = numbers_in("multi_scale", "scales", self.scales)
        require(
            all(scale >= 1 and scale == int(scale) for scale in scales),
            f"multi_scale: scales must be whole numbers of 1 or more, got {self.scales!r}; use '1,3,16,64'",
        )
        require(
            0 <= self.alpha < math.inf,
            f"multi_scale: alpha must be 0 or more and finite, got {self.alpha}; use 0.5 for example",
        )
        require(self.layer >= 1, f"multi_scale: layer must be 1 or more, got {self.layer}; count from 1")


class MultiScale(DistanceTerm):
    """Windows of several widths."""

    Config = MultiScaleConfig
    card = Card(
        name="multi_scale",
        kind="score",
        family="improved multi-head",
        paper="Guo et al. 2020, arXiv 1912.00544",
        formula="score[h,i,j] = -inf where |i-j| > scale_h // 2",
        cost="O(1) per pair",
        summary="each head sees a window of its own scale",
        options=options_of(MultiScaleConfig),
    )

    def __init__(self, config: MultiScaleConfig, site: ScoreSite, generator: torch.Generator) -> None:
        super().__init__()
        scales = [int(scale) for scale in numbers_in("multi_scale", "scales", config.scales)]
        require(
            len(scales) <= site.heads,
            f"multi_scale: scales must be no more than the {site.heads} heads, got {len(scales)}; "
            "give fewer scales",
        )
        counts = heads_per_scale(scales, site.heads, config)
        self.farthest = [
            scale // 2 for scale, count in zip(scales, counts, strict=True) for _ in range(count)
        ]

    def at(self, head: Tensor, distance: Tensor) -> Tensor:
        """Nothing inside the window, -inf outside."""
        outside = distance.abs() > torch.tensor(self.farthest, device=head.device)[head]
        return torch.zeros(outside.shape, device=outside.device).masked_fill(outside, -math.inf)

    def reach(self) -> int:
        """Half of the widest window."""
        return max(self.farthest)


def heads_per_scale(scales: list[int], heads: int, config: MultiScaleConfig) -> list[int]:
    """How many heads each scale gets, in the order given."""
    below = [sum(other < scale for other in scales) for scale in scales]
    logits = torch.tensor([config.alpha * (len(scales) - 1 - k) / config.layer for k in below])
    shares = (heads * logits.double().softmax(0)).tolist()
    counts = [int(share + 1e-9) for share in shares]
    by_remainder = sorted(
        range(len(scales)), key=lambda k: round(counts[k] - shares[k], 9)
    )  # stable: in order
    for k in by_remainder[: heads - sum(counts)]:
        counts[k] += 1
    return counts
