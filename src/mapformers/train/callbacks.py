"""What happens beside the loop: centroids move, numbers are written down, the model is checked on held-out
data.
"""

import json
import math
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mapformers.core.errors import MapformersError
from mapformers.report.page import write_report
from mapformers.tasks.corpus import write_text
from mapformers.train.folder import RunFolder
from mapformers.train.progress import RunProgress
from mapformers.train.task import Task
from mapformers.train.trainer import Meter


class Centroids(TrainerCallback):
    """Moves what gradients do not, after each optimiser step and on every process."""

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called between the optimiser step and zero_grad."""
        kwargs["model"].update_centroids()


class MetricsFile:
    """metrics.jsonl: one JSON object a line, appended and flushed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, line: dict[str, Any]) -> None:
        """One more line. Raises MapformersError when the disk is full."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise MapformersError(
                f"train: {self.path} must be writable, got {error.strerror or error}; make room and --resume"
            ) from None

    def truncate(self, step: int) -> None:
        """Keep whole lines up to this step: what came after the checkpoint will come again."""
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
            write_text(self.path, "".join(line + "\n" for line in lines if _step_of(line) <= step))


class Metrics(TrainerCallback):
    """Writes the loss, what the task makes of it, auxiliary losses and speed; shows them as progress."""

    def __init__(
        self, meter: Meter, task: Task, file: MetricsFile | None, progress: RunProgress | None
    ) -> None:
        self.meter, self.task, self.file, self.progress = meter, task, file, progress
        self.then = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The clock starts."""
        self.then = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Whatever is saved is logged first, so that a resumed run logs the same means."""
        if control.should_save or state.global_step == 1:
            control.should_log = True
        if self.progress is not None:
            self.progress.step(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Called on every process, after the steps since the last call."""
        if logs is None or "loss" not in logs:
            return
        now = time.monotonic()
        losses, seen = self.meter.read()
        speed = seen * args.world_size / max(now - self.then, 1e-9)
        self.then = now
        if self.file is None or self.progress is None:
            return
        loss = losses.pop(self.task.loss)
        self.file.append(
            {
                "step": state.global_step,
                "loss": loss,
                **self.task.figures(loss),
                "losses": losses,
                "learning_rate": logs.get("learning_rate"),
                "grad_norm": logs.get("grad_norm"),
                f"{self.task.counted}_per_second": speed,
            }
        )
        self.progress.report(state.global_step, self.task.progress(loss), speed, self.task.counted)


class Validation(TrainerCallback):
    """On the first process, every `every` steps and at the end: the task's figures on held-out data,
    telemetry, and a sample where the task makes one.
    """

    def __init__(self, run: RunFolder, every: int, file: MetricsFile, progress: RunProgress) -> None:
        self.run, self.every = run, every
        self.file, self.progress = file, progress

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Validate when it is time."""
        step, model = state.global_step, kwargs["model"]
        if step % self.every and step < state.max_steps:
            return
        model.eval()
        check = self.run.task.validate(model, self.run.preset, self.run.data)
        figures = {f"valid_{name}": value for name, value in check.figures.items()}
        line = {"step": step, **figures, "telemetry": model.telemetry(), "sample": check.sample}
        model.train()
        self.file.append(line)
        write_report(self.run.path)
        self.progress.note(f"step {step}: {check.text}")


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut off by a kill
