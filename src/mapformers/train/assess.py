"""`mapformers eval`: a trained run scored on its own held-out data or on another source."""

from pathlib import Path
from typing import Any

from mapformers.train.loading import load_trained
from mapformers.train.task import Asked
from mapformers.train.tasks import TASKS


def assess(run: Path, asked: Asked | None = None) -> dict[str, Any]:
    """The score of a run as plain data; what is in it, its task says.

    Raises MapformersError for bad input. Nothing is written into the run folder.
    """
    trained = load_trained(run)
    preset = trained.run.preset
    result = trained.run.task.assess(trained.model, preset, trained.run.data, asked or Asked())
    return {**result, "task": preset.task, "step": trained.step}


def as_text(result: dict[str, Any]) -> str:
    """What `assess` returns, for people."""
    return TASKS[result["task"]].line(result)
