"""What the inspector's page holds of one text under one model: per token, never per pair of tokens."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mapformers.attention.multi_head import MultiHeadAttention
from mapformers.core.carry import Carry
from mapformers.core.errors import MapformersError, require
from mapformers.core.plans import Plan, Windows
from mapformers.core.score import Call
from mapformers.inspector.weights import Seen, divergence, parts_of, seen_by

SAMPLES = 96  # tokens whose weights are compared between heads
# Their segments are made of places, not of what stands there.
BY_PLACE = ("dilated", "strided", "block_local", "axial", "image_local", "sparse_transformer", "longformer")
Say = Callable[[str], None]


@dataclass(frozen=True)
class HeadRecord:
    """One head: its mechanism and statistics; where it has clusters, that in which each token can be found
    [N] int, and that in which it looks itself [N] int (the first, if there are several); else None.
    """

    mechanism: str
    horizon: float
    entropy: float
    clusters: np.ndarray | None
    looks_in: np.ndarray | None


@dataclass(frozen=True)
class LayerRecord:
    """One layer: keys [H, N, keep] (-1 = none), weights [H, N, keep], divergence [H, H], and its heads."""

    name: str
    keys: np.ndarray
    weights: np.ndarray
    divergence: np.ndarray
    heads: tuple[HeadRecord, ...]


@dataclass(frozen=True)
class TextRecord:
    """A text: its bytes [N], the bits that each byte took [N] (0 for the first), and what the layers saw."""

    tokens: np.ndarray
    bits: np.ndarray
    layers: tuple[LayerRecord, ...]
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()


@torch.no_grad()
def record_text(model: Any, text: bytes, keep: int, facts: dict[str, Any], say: Say) -> TextRecord:
    """Run a causal language model in evaluation mode over a text, and keep what its layers attended to.

    Raises MapformersError for an empty text and for models without layers that attend by heads.
    """
    require(len(text) > 1, f"inspect: the text must have 2 bytes or more, got {len(text)}; give another file")
    tokens = torch.tensor(list(text))
    out, layers, notes = record_layers(
        model, lambda: model(input_ids=tokens[None], use_cache=False), keep, say
    )
    require(bool(layers), f"inspect: a layer must be readable, got none{_why(notes)}; use another run")
    nats = torch.nn.functional.cross_entropy(out.logits[0, :-1].float(), tokens[1:], reduction="none")
    bits = torch.cat([torch.zeros(1), nats / math.log(2)])
    return TextRecord(tokens.numpy().astype(np.uint8), bits.numpy(), tuple(layers), facts, tuple(notes))


@torch.no_grad()
def record_layers(
    model: Any, forward: Callable[[], Any], keep: int, say: Say
) -> tuple[Any, list[LayerRecord], list[str]]:
    """What `forward` returns, the layers that attend by heads in it (batch 1), and what is not shown and why.

    keep   strongest keys of each token
    """
    with _calls(model) as calls:
        out = forward()
    layers, notes = [], []
    for number, (name, layer, call) in enumerate(calls, 1):
        said = f"layer {number} of {len(calls)}"
        try:
            seen = seen_by(layer, call, keep, SAMPLES, lambda share, said=said: say(f"{said} {share:4.0%}"))
        except MapformersError as error:
            notes.append(f"{name} is not shown: {error}")
            continue
        layers.append(_layer(name, layer, call, seen))
    blocks = len(getattr(getattr(model, "model", None), "layers", calls))
    if blocks > len(calls):
        notes.append(f"{blocks - len(calls)} of {blocks} layers do not attend by heads and are not shown")
    return out, layers, notes


def _why(notes: list[str]) -> str:
    return f": {'; '.join(notes)}" if notes else ""


def _layer(name: str, layer: MultiHeadAttention, call: Call, seen: Seen) -> LayerRecord:
    heads: list[HeadRecord] = []
    for mechanism, plan, share in zip(layer.parts(), call.plans, layer.shares, strict=True):
        for head in range(share):
            at = len(heads)
            figures = float(seen.horizon[at]), float(seen.entropy[at])
            found = (None, None) if mechanism.card.name in BY_PLACE else _clusters(plan, head)
            heads.append(HeadRecord(mechanism.card.name, *figures, *found))
    return LayerRecord(
        name, seen.key.numpy(), seen.weight.numpy(), divergence(seen.sample).numpy(), tuple(heads)
    )


def _clusters(plan: Plan, head: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The segments [N] of keys and of queries: clusters, or buckets in Reformer; the first of several."""
    for part in parts_of(plan):
        if isinstance(part, Windows) and part.query_segment is not None and part.key_segment is not None:
            return _first(part.key_segment, head), _first(part.query_segment, head)
    return None, None


def _first(segment: Tensor, head: int) -> np.ndarray:
    """[N] of [1, H or G, N] or [1, H or G, N, r]; a head of keys serves several of queries at most."""
    of_head = segment[0, min(head, segment.shape[1] - 1)]
    found: np.ndarray = (of_head if of_head.dim() == 1 else of_head[:, 0]).numpy().astype(np.int32)
    return found


@contextlib.contextmanager
def _calls(model: Any) -> Iterator[list[tuple[str, MultiHeadAttention, Call]]]:
    """Within it, every self-attention of a layer is written down with its call."""
    found: list[tuple[str, MultiHeadAttention, Call]] = []
    watched = [(name, part) for name, part in model.named_modules() if isinstance(part, MultiHeadAttention)]

    def watch(name: str, layer: MultiHeadAttention) -> None:
        attend = layer.attend

        def noted(x: Tensor, carry: Carry | None = None, choices: Any = None) -> Any:
            result = attend(x, carry, choices)
            if result.call is not None:
                found.append((name, layer, _detached(result.call)))
            return result

        object.__setattr__(layer, "attend", noted)

    for name, layer in watched:
        watch(name, layer)
    try:
        yield found
    finally:
        for _, layer in watched:
            object.__delattr__(layer, "attend")


def _detached(call: Call) -> Call:
    """The call without gradients, of the first row of the batch."""
    changes = {name: getattr(call, name).detach() for name in ("plain_q", "plain_k", "q", "k", "v")}
    return dataclasses.replace(call, **changes)
