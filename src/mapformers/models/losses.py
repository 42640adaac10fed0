"""The loss that is differentiated: that of the task, in training with auxiliary losses by their weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mapformers.catalog import policy_names
from mapformers.core.errors import require
from mapformers.core.mechanism import Mechanism
from mapformers.core.policy import MovingBaseline

IGNORED = -100  # label of a target that does not count


def baseline_for(model: nn.Module) -> MovingBaseline | None:
    """A baseline for a model with mechanisms whose choices are drawn; None where there is none."""
    draws = any(isinstance(module, Mechanism) and module.policy_names for module in model.modules())
    return MovingBaseline() if draws else None


def training_loss(
    task: Tensor,
    losses: Mapping[str, Tensor],
    weights: Mapping[str, float],
    baseline: MovingBaseline | None,
) -> Tensor:
    """The loss of the task [] with the auxiliary `losses` by their weights. Call it in training only."""
    excess = 0.0 if baseline is None else baseline(task)
    total = task
    for name, weight in weights.items():
        if name in losses:
            factor = excess if name in policy_names() else 1.0
            total = total + weight * factor * losses[name].to(total.dtype)
    return total


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits [.., V] against labels [..], in float32 or wider; -100 does not count."""
    require(
        labels.shape == logits.shape[:-1],
        f"model: labels must have shape {tuple(logits.shape[:-1])}, got {tuple(labels.shape)}; one for each "
        "row of logits",
    )
    target = labels.to(logits.device).flatten()
    scores = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    total = F.cross_entropy(scores.flatten(0, -2), target, ignore_index=IGNORED, reduction="sum")
    return total / (target != IGNORED).sum().clamp(min=1)
