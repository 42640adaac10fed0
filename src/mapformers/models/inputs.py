"""From the inputs of a transformers model to the carry of our blocks, with every check at the door."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mapformers.core.carry import Carry
from mapformers.core.errors import require
from mapformers.models.cache import MapformerCache


def carry_of(
    x: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, segments: Tensor | None
) -> Carry:
    """The carry of a whole sequence x [B, N, dim]."""
    batch, length, _ = x.shape
    for name, ids in (("position_ids", position_ids), ("segments", segments)):
        require(
            ids is None or tuple(ids.shape) in ((batch, length), (1, length)),
            f"model: {name} must have shape ({batch}, {length}), got {_shape(ids)}; one entry per token",
        )
    return Carry(
        key_is_real=_real(attention_mask, batch, length, 0),
        positions=position_ids,
        segments=None if segments is None else segments.expand(batch, length),
    )


def new_columns(x: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, cache: Any) -> Carry:
    """The carry of the tokens x [B, n, dim] that continue a cache; the blocks know the past themselves."""
    require(
        isinstance(cache, MapformerCache),
        f"model: past_key_values must be a MapformerCache, got {type(cache).__name__}; "
        "leave it out: generate() and use_cache=True make one",
    )
    batch, new, _ = x.shape
    cache.check_batch(batch)
    key_is_real = _real(attention_mask, batch, new, cache.get_seq_length())
    if position_ids is not None:
        expected = cache.positions(key_is_real, batch, new, x.device)
        wrong = position_ids != expected
        if key_is_real is not None:
            wrong = wrong & key_is_real
        require(
            not bool(wrong.any()),
            "model: position_ids must count the real tokens of the row when a cache is used, got others; "
            "leave them out, or pass use_cache=False",
        )
    return Carry(key_is_real=key_is_real)


def _real(attention_mask: Tensor | None, batch: int, new: int, past: int) -> Tensor | None:
    """[B, new] bool of the new columns; None when all are real."""
    if attention_mask is None:
        return None
    require(
        tuple(attention_mask.shape) == (batch, past + new),
        f"model: attention_mask must have shape ({batch}, {past + new}), past and new tokens, "
        f"got {_shape(attention_mask)}; pass 1 for real tokens and 0 for padding",
    )
    real = attention_mask[:, past:] != 0
    if not torch.compiler.is_compiling() and bool(real.all()):
        return None
    return real


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
