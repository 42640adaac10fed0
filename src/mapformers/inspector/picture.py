"""What a model attends to in one example that is laid out as a picture: pixels, sound or text in cells."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mapformers.blocks.read import Read
from mapformers.core.errors import require
from mapformers.inspector.example import Example
from mapformers.inspector.filled import filled
from mapformers.inspector.record import LayerRecord, Say, record_layers
from mapformers.models.perceiver.model import PerceiverPreTrainedModel

MOST_LATENTS = 128  # of a read, on a page
MOST_CLASSES = 5


@dataclass(frozen=True)
class ReadRecord:
    """A read of the input by latents: the weights [H, L, cells] of the first L latents, of `latents` in all,
    and the entropy [H] of a latent's weights over the places in bits, in the mean over all latents.
    """

    name: str
    weights: np.ndarray
    latents: int
    entropy: np.ndarray


@dataclass(frozen=True)
class PictureRecord:
    """An example, what was read of it or attended to in it, and the classes, likeliest first."""

    example: Example
    reads: tuple[ReadRecord, ...]
    layers: tuple[LayerRecord, ...]
    answer: tuple[tuple[str, float], ...]
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()


@torch.no_grad()
def record_picture(model: Any, example: Example, keep: int, facts: dict[str, Any], say: Say) -> PictureRecord:
    """Run a model in evaluation mode over an example, and keep what it attended to.

    keep   strongest places kept of each place, where places attend to places
    Raises MapformersError for models without layers that attend by heads.
    """
    reads: list[ReadRecord] = []
    layers: list[LayerRecord] = []
    notes: list[str] = []
    if isinstance(model, PerceiverPreTrainedModel):
        with _reads(model) as calls:
            out = model(**example.inputs)
        for number, (read, z, array, real) in enumerate(calls, 1):
            say(f"read {number} of {len(calls)}")
            reads.append(_read(f"read {number} of {len(calls)}", read.weights(z, array, real)[0], example))
        if reads and reads[0].latents > MOST_LATENTS:
            notes.append(f"The first {MOST_LATENTS} of {reads[0].latents} latents are shown.")
    else:
        out, layers, notes = record_layers(model, lambda: model(**example.inputs), keep, say)
        notes.append(f"Of each place the {keep} strongest of every head are kept.")
    require(
        bool(reads or layers),
        f"inspect: a layer must be readable, got none: {'; '.join(notes)}; use another run",
    )
    return PictureRecord(
        example, tuple(reads), tuple(layers), _answer(model, out, example), facts, tuple(notes)
    )


def picture_page(record: PictureRecord) -> str:
    """The whole page. Everything that came from data or a run is escaped, or stands in base64."""
    example = record.example
    views = [_view_of_read(one) for one in record.reads] + [_view_of_layer(one) for one in record.layers]
    facts: dict[str, Any] = {
        **record.facts,
        "cells": list(example.cells),
        "places": len(example.cell),
        "shape": None if example.pixels is None else list(example.pixels.shape[:2]),
        "answer": [[name, round(share, 4)] for name, share in record.answer],
        "said": example.said,
        "sound": example.in_lines,
        "notes": list(record.notes),
        "views": views,
    }
    blobs = {"cell": example.cell.astype("<i4")}
    if example.pixels is not None:
        blobs["pixels"] = example.pixels
    if example.glyphs is not None:
        blobs["glyphs"] = example.glyphs.astype(np.uint8)
    for number, read in enumerate(record.reads):
        scale = read.weights.max(-1)  # [H, L]
        blobs[f"scale-{number}"] = scale.astype("<f4")
        shares = read.weights / np.maximum(scale, 1e-12)[..., None]
        blobs[f"reads-{number}"] = np.rint(255 * shares).astype(np.uint8)
    for number, layer in enumerate(record.layers, len(record.reads)):
        blobs[f"keys-{number}"] = layer.keys.astype("<i4")
        blobs[f"weights-{number}"] = layer.weights.astype("<f4")
    return filled("picture", facts, blobs)


def _view_of_read(read: ReadRecord) -> dict[str, Any]:
    heads = [{"name": "read", "entropy": round(float(x), 3)} for x in read.entropy]
    return {"name": read.name, "kind": "read", "latents": read.weights.shape[1], "heads": heads}


def _view_of_layer(layer: LayerRecord) -> dict[str, Any]:
    heads = [{"name": head.mechanism, "entropy": round(head.entropy, 3)} for head in layer.heads]
    kinds = " + ".join(dict.fromkeys(head.mechanism for head in layer.heads))
    return {"name": kinds, "kind": "layer", "keep": layer.keys.shape[-1], "heads": heads}


def _read(name: str, weights: Tensor, example: Example) -> ReadRecord:
    """From weights [H, L, M] over places to those over cells."""
    weights = weights.double()
    bits = -torch.where(weights > 0, weights * weights.clamp(min=1e-30).log2(), 0.0).sum(-1).mean(-1)
    shown = weights[:, :MOST_LATENTS]
    over = torch.zeros(*shown.shape[:2], example.cells[0] * example.cells[1], dtype=shown.dtype)
    over.index_add_(2, torch.from_numpy(example.cell), shown)
    return ReadRecord(name, over.float().numpy(), weights.shape[1], bits.numpy())


def _answer(model: Any, out: Any, example: Example) -> tuple[tuple[str, float], ...]:
    """The likeliest classes, where there are classes."""
    if example.label is None:
        return ()
    share = out.logits[0].float().softmax(-1)
    best = share.topk(min(MOST_CLASSES, len(share)))
    names = model.config.id2label
    found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return tuple((str(names[index]), float(value)) for index, value in found)


@contextlib.contextmanager
def _reads(model: Any) -> Iterator[list[tuple[Read, Tensor, Tensor, Tensor | None]]]:
    """Within it, every read of the input is written down: module, latents, array and which of it is real."""
    found: list[tuple[Read, Tensor, Tensor, Tensor | None]] = []

    def note(read: Any, given: tuple[Any, ...]) -> None:
        found.append((read, *given[:3]))

    hooks = [read.register_forward_pre_hook(note) for read in model.encoder.reads]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
