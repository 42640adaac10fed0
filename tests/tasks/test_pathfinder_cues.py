"""Pathfinder: the discs alone, without the dashes, do not tell the class."""

import pytest
import torch
from torch import Tensor

from mapformers.tasks.pathfinder import Pathfinder


def best_interval(x: Tensor, target: Tensor) -> float:
    """Accuracy on the second half of the best "between two limits", or its opposite, of the first half."""
    half = len(x) // 2
    limits = torch.linspace(float(x.min()) - 0.1, float(x.max()) + 0.1, 30)
    above = x[:, None] > limits  # [B, 30]
    said = above[:, :, None] & ~above[:, None, :]  # [B, 30, 30] between two limits
    right = (said == target[:, None, None]).double()
    train = right[:half].mean(0).flatten()
    best = int((train - 0.5).abs().argmax())
    test = float(right[half:].mean(0).flatten()[best])
    return test if float(train[best]) > 0.5 else 1 - test


@pytest.mark.slow
def test_the_discs_alone_do_not_tell() -> None:
    made = Pathfinder().batch(3000, torch.Generator().manual_seed(0))
    target = made.target.bool()
    between = made.ends[:, 1] - made.ends[:, 0]
    own, other = made.paths[:, 0], made.paths[:, 1]
    first = own[:, 3] - own[:, 0]
    second = torch.where(target[:, None], own[:, -4] - own[:, -1], other[:, 3] - other[:, 0])
    cues = {
        "distance": between.norm(dim=-1),
        "first heading": torch.cosine_similarity(between, first, dim=-1),
        "second heading": torch.cosine_similarity(-between, second, dim=-1),
    }
    told = {name: best_interval(cue, target) for name, cue in cues.items()}
    assert all(accuracy < 0.65 for accuracy in told.values()), told
