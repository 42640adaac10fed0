"""Audit a layer: does the future leak, does padding matter, do batch rows mix, does decoding agree?

Takes our layers and blocks, and anybody's nn.Module or function. Everything is measured: inputs are changed
where they must not matter, and the outputs that should stay are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mapformers.audit import checks
from mapformers.audit.inputs import Draw
from mapformers.audit.report import Check, Report
from mapformers.audit.subject import Step, Subject, adapt, name_of, widest
from mapformers.core.errors import require

__all__ = ["Check", "Report", "audit"]


def audit(
    subject: nn.Module | Callable[..., Any],
    *,
    causal: bool = True,
    dim: int | None = None,
    vocab: int | None = None,
    length: int = 64,
    batch: int = 2,
    mask: str | None = None,
    decode: Step | None = None,
    seed: int = 0,
) -> Report:
    """Check a layer [B, N, dim] -> [B, N, dim], or a model of token ids [B, N] -> [B, N, vocab].

    subject   a layer of mf.attention, a block of mf.block, any nn.Module, or any function. An output that is
              a tuple or has `.logits` or `.last_hidden_state` counts by that tensor. Modules are copied, run
              in eval mode and in float64 where they can; the original and the global random state stay as
              they are
    causal    whether later tokens must not matter
    dim       width of the input; not needed for our own layers and blocks, nor with `vocab`
    vocab     the subject takes token ids below this number
    mask      name of the argument that takes a mask [B, N] bool, True = real; None = takes no padding
    decode    step(x [B, 1, ..], state or None) -> (y [B, 1, ..], state), to compare token by token with the
              whole; not needed for our own layers
    Raises MapformersError where the subject cannot be called like that.
    """
    require(length >= 4, f"audit: length must be 4 or more, got {length}; use 64")
    require(batch >= 2, f"audit: batch must be 2 or more, got {batch}; use 2")
    adapted = adapt(subject, mask, decode)
    width = adapted.dim if dim is None else dim
    require(
        width is not None or vocab is not None,
        "audit: dim must be given for a module that is not ours, got none; pass dim= or vocab=",
    )
    draw = Draw(width or 0, vocab, length, batch, torch.Generator().manual_seed(seed))
    run = widest(adapted, draw)
    rows, notes = _causality(run, draw) if causal else ([], ["future: not checked, it is not causal"])
    if adapted.padding:
        rows += checks.padding(run, draw)
    else:
        notes.append("padding: not checked, no argument that takes a mask was named")
    rows += [checks.batch_rows(run, draw), checks.determinism(run, draw), *checks.state(run, draw)]
    if causal and adapted.decode is not None:
        rows.append(checks.decoding(run, draw))
    else:
        notes.append("decode: not checked, there is no step to decode with")
    return Report(name_of(subject), tuple(rows), tuple(notes))


def _causality(run: Subject, draw: Draw) -> tuple[list[Check], list[str]]:
    """What later tokens do, by changing them and by derivatives; or why there are none of these."""
    rows, found = list(checks.future(run, draw)), checks.gradient(run, draw)
    return (rows, [found]) if isinstance(found, str) else ([*rows, found], [])
