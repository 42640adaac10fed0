"""Bits per byte of a text under a model: every byte but the first, and the same by decoding byte after
byte.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mapformers.core.errors import MapformersError, require

AGREE = 1e-4  # bits per byte; more than rounding explains is a leak or a bug


@dataclass(frozen=True)
class Score:
    """bits_per_byte over `bytes` scored bytes, each seen with at least `context - stride` bytes before it
    (if there are).
    """

    bits_per_byte: float
    bytes: int
    context: int
    stride: int


@dataclass(frozen=True)
class PrefixScore:
    """The same positions scored twice, in bits per byte.

    prefix_only      by decoding: position t is predicted from a computation that has seen only what lies
    before it
    teacher_forced   by one pass over the whole text, masked
    difference       of the two means; largest_difference: the most at any one position
    method           cache = token by token with the model's cache, prefixes = one pass per prefix
    """

    prefix_only: float
    teacher_forced: float
    difference: float
    largest_difference: float
    positions: int
    method: str

    @property
    def agrees(self) -> bool:
        """Whether the two means are the same to 1e-4."""
        return self.difference <= AGREE


@torch.no_grad()
def bits_per_byte(
    model: Any,
    text: np.ndarray,
    context: int,
    stride: int | None = None,
    tick: Callable[[float], None] | None = None,
) -> Score:
    """Score every byte of `text` [n] uint8 but the first.

    Windows of `context` bytes move on by `stride` (default: half the context); a byte is scored in the first
    window that
    holds it. `tick` is told the share that is done. Raises MapformersError for a text too short or a stride
    out of range.
    """
    require(len(text) >= 2, f"eval: the text must have 2 bytes or more, got {len(text)}; give more data")
    stride = max(1, context // 2) if stride is None else stride
    require(
        0 < stride < context,
        f"eval: stride must lie in 1..{context - 1} (below the context), got {stride}; choose another "
        "--stride",
    )
    total, scored = 0.0, 0
    for windows, first_new in _windows(text, min(context, len(text)), stride):
        losses = byte_losses(model, windows.to(next(model.parameters()).device))  # [b, c - 1]
        for row, new in zip(losses, first_new, strict=True):
            total += row[new - 1 :].double().sum().item()
            scored += row.numel() - (new - 1)
        if tick is not None:
            tick(scored / (len(text) - 1))
    require(
        math.isfinite(total),
        f"eval: the loss must be finite, got {total}; the model is broken, use another checkpoint",
    )
    return Score(total / scored / math.log(2), scored, context, stride)


@torch.no_grad()
def prefix_only(model: Any, text: np.ndarray, positions: int) -> PrefixScore:
    """Score bytes 1..positions of `text` by decoding, and by teacher forcing.

    Models that cannot decode exactly (published, leaky variants) run every prefix anew instead.
    """
    require(
        0 < positions < len(text),
        f"eval: --prefix-only must lie in 1..{len(text) - 1} for this text, got {positions}; lower it",
    )
    tokens = _tensor(model, text[: positions + 1])[None]  # [1, n + 1]
    forced = byte_losses(model, tokens)[0].double()
    try:
        method, logits = "cache", _decode(model, tokens)
    except MapformersError:
        method, logits = "prefixes", _run_prefixes(model, tokens)
    alone = F.cross_entropy(logits.float(), tokens[0, 1:], reduction="none").double()
    alone, forced = alone / math.log(2), forced / math.log(2)
    return PrefixScore(
        prefix_only=alone.mean().item(),
        teacher_forced=forced.mean().item(),
        difference=(alone.mean() - forced.mean()).abs().item(),
        largest_difference=(alone - forced).abs().max().item(),
        positions=positions,
        method=method,
    )


def byte_losses(model: Any, tokens: Tensor) -> Tensor:
    """[b, c - 1] cross-entropy in nats of tokens [b, c] int, each given those before it in its row."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(
        len(tokens), -1
    )


def _windows(
    text: np.ndarray, context: int, stride: int, batch_bytes: int = 16384
) -> Iterator[tuple[Any, list[int]]]:
    """Batches of windows, and in each the index of the first byte that no window before it holds (1 in the
    first).
    """
    starts, new = [0], [1]
    while starts[-1] + context < len(text):
        start = min(starts[-1] + stride, len(text) - context)  # the last one ends with the text
        new.append(starts[-1] + context - start)
        starts.append(start)
    batch = max(1, batch_bytes // context)
    for i in range(0, len(starts), batch):
        rows = [text[start : start + context] for start in starts[i : i + batch]]
        yield torch.from_numpy(np.stack(rows).astype(np.int64)), new[i : i + batch]


def _decode(model: Any, tokens: Tensor) -> Tensor:
    """[n, 256] logits after each of tokens [1, n + 1] but the last, one step at a time with the cache."""
    cache, logits = None, []
    for i in range(tokens.shape[1] - 1):
        out = model(input_ids=tokens[:, i : i + 1], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits.append(out.logits[0, -1])
    return torch.stack(logits)


def _run_prefixes(model: Any, tokens: Tensor) -> Tensor:
    """The same without a cache: one pass per prefix."""
    return torch.stack(
        [
            model(input_ids=tokens[:, : i + 1], use_cache=False).logits[0, -1]
            for i in range(tokens.shape[1] - 1)
        ]
    )


def _tensor(model: Any, text: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(text).astype(np.int64)).to(next(model.parameters()).device)
