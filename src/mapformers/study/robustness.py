"""How well a trained model recalls when irrelevant tokens are put into what it reads."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from mapformers.tasks.irrelevant import inject
from mapformers.tasks.passkey import Passkey
from mapformers.tasks.recall import Recall
from mapformers.train.answers import accuracy_of, generator_of, labelled
from mapformers.train.loading import load_trained
from mapformers.train.presets import Preset
from mapformers.train.shuffled import seed_of

SHARES = (0.0, 0.25, 0.5, 0.75)
EXAMPLES, BATCH = 256, 64


def is_recall(preset: Preset) -> bool:
    """Whether irrelevant tokens are defined for the task of a preset."""
    return preset.task == "answers" and preset.data.source in ("recall", "passkey")


def robustness(run: Path) -> dict[str, float]:
    """Accuracy of a run by the share of irrelevant tokens, on fresh examples that are the same for all runs.

    Recall: tokens/irrelevant.py. Passkey: more of its filler, so that a share of the longer text is new.
    """
    trained = load_trained(run)
    task = generator_of(trained.run.preset)
    return {str(share): accuracy_of(trained.model, _batches(task, share))[0] for share in SHARES}


def _batches(task: Any, share: float) -> Any:
    for start in range(0, EXAMPLES, BATCH):
        generator = torch.Generator().manual_seed(seed_of(0, 3, start))
        if isinstance(task, Recall):
            batch: Any = inject(task, task.batch(BATCH, generator), share, generator)
        else:
            assert isinstance(task, Passkey)
            longer = dataclasses.replace(task, length=round(task.length / (1 - share)))
            batch = longer.batch(BATCH, generator)
        made = labelled(batch)
        yield made["input_ids"], made["labels"]
