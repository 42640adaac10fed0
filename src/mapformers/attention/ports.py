"""What goes together in one layer: every combination that cannot be honoured is refused when it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapformers.core.errors import require
from mapformers.core.score import ScoreSite
from mapformers.functional import check_supports

if TYPE_CHECKING:
    from mapformers.attention.multi_head import MultiHeadAttention


def check_ports(layer: MultiHeadAttention) -> None:
    """Raise MapformersError, naming both sides, where ports of the layer do not go together."""
    options, sizes, project = layer.options, layer.sizes, layer.project
    group = sizes.heads // project.kv_heads
    for mechanism, share in zip(layer.parts(), layer.shares, strict=True):
        require(
            share % group == 0 or project.kv_heads == 1,
            f"{mechanism.card.name}: heads must be a multiple of heads / kv_heads = {group}, got {share}; "
            "change the shares or kv_heads",
        )
        check_supports(mechanism, options.causal, rotary=options.rotary, score=layer.score, grouped=group > 1)
    require(
        not options.rotary or sizes.head_dim % 2 == 0,
        f"rotary: head_dim must be even, got {sizes.head_dim}; choose another head_dim or rotary=False",
    )
    require(
        not options.rotary or project.takes_rotary,
        f"rotary: is not supported by {project.card.name}, got rotary=True; add positions to the input",
    )
    if project.has_second:
        _check_second(layer)
    _check_losses(layer)


def _check_second(layer: MultiHeadAttention) -> None:
    """A second set of q, k, v needs rows that are marked for it."""
    name = layer.project.card.name
    others = [mechanism.card.name for mechanism in layer.parts() if not mechanism.marks_rows]
    require(
        not layer.options.causal and not others,
        f"{name}: needs causal=False and mechanisms that mark rows, got causal={layer.options.causal}"
        + (f" and {', '.join(others)} without any" if others else "")
        + '; use "longformer(global_tokens=1)" for example, or another projection',
    )
    require(
        layer.score is None or not layer.score.carries,
        f"{name}: takes no score terms that read the layer below, got one; use another projection",
    )
    require(
        not len(layer.losses),
        f"{name}: takes no losses of heads, got one; use another projection",
    )


def _check_losses(layer: MultiHeadAttention) -> None:
    site = ScoreSite(layer.sizes.heads, layer.sizes.head_dim, layer.options.causal)
    for loss in layer.head_losses():
        for mechanism in layer.parts():
            require(
                not loss.reads_weights or ("score" in mechanism.card.supports and mechanism.one_softmax),
                f"{loss.card.name}: needs attention weights, got {mechanism.card.name}, which makes none; "
                "use a softmax mechanism",
            )
        loss.check(site)
