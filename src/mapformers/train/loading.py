"""A trained model out of a run folder."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from mapformers.core.errors import MapformersError, require
from mapformers.train.checkpoint import MANIFEST, verify
from mapformers.train.folder import RunFolder, open_run
from mapformers.train.models import config_of, model_class
from mapformers.train.presets import Preset


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode, the run it comes from, and the step of its checkpoint."""

    model: Any
    run: RunFolder
    step: int


def load_trained(path: Path) -> Trained:
    """The newest complete checkpoint of RUN, or that of RUN/checkpoint-N.

    Raises MapformersError where there is none.
    """
    if (path / MANIFEST).is_file():
        verify(path)
        run = open_run(path.parent)
        return Trained(_load(run.preset, path), run, int(path.name.rpartition("-")[2]))
    run = open_run(path)
    last = run.last_checkpoint()
    if last is None:
        raise MapformersError(
            f"run: {path} must hold a checkpoint, got none; train on with: mapformers train --output "
            f"{path} --resume"
        )
    return Trained(_load(run.preset, last[1]), run, last[0])


def check_start(preset: Preset) -> None:
    """Raise MapformersError unless the run that a preset starts from is there and of the same kind."""
    start = preset.training.start_from
    if start is not None:
        held = load_trained(Path(start)).run.preset
        require(
            (held.task, held.architecture) == (preset.task, preset.architecture),
            f"--from: {start} must hold a {preset.architecture} for {preset.task}, got a {held.architecture} "
            f"for {held.task}; choose a run of the same preset",
        )
        if preset.task == "language-model":
            start_weights(Path(start), model_class(preset), config_of(preset))


def start_weights(path: Path, kind: Any, config: Any) -> dict[str, torch.Tensor]:
    """The weights of a run or checkpoint, for a new model kind(config); windows and lengths may differ.

    Raises MapformersError where names or shapes do not fit.
    """
    held: dict[str, torch.Tensor] = load_trained(path).model.state_dict()
    with torch.device("meta"):
        wanted = kind(config).state_dict()
    for name in sorted(set(held) | set(wanted)):
        there, asked = (None if name not in x else tuple(x[name].shape) for x in (held, wanted))
        require(
            there == asked,
            f"--from: {name} must have shape {asked}, got {there} in {path}; choose a model of these sizes",
        )
    return held


def quiet() -> None:
    """transformers and accelerate say on the screen only what is wrong."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)


def _load(preset: Preset, folder: Path) -> Any:
    quiet()
    model = model_class(preset).from_pretrained(folder)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
