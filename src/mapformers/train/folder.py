"""A run folder: config.yaml, data/, metrics.jsonl, checkpoint-N/, report.html.

It appears whole or not at all.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mapformers.core.errors import MapformersError, require
from mapformers.tasks.corpus import write_text
from mapformers.train.checkpoint import checkpoints, verify
from mapformers.train.models import config_of
from mapformers.train.presets import Preset, preset_from
from mapformers.train.task import Task
from mapformers.train.tasks import task_of

CONFIG = "config.yaml"
DATA = "data"


@dataclass(frozen=True)
class RunFolder:
    """An existing run: where it lies and what it was told to do."""

    path: Path
    preset: Preset

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def report(self) -> Path:
        """The page about the run."""
        return self.path / "report.html"

    @property
    def data(self) -> Path:
        """What its task has written down to train and score on."""
        return self.path / DATA

    @property
    def task(self) -> Task:
        """What the run is about."""
        return task_of(self.preset)

    def last_checkpoint(self) -> tuple[int, Path] | None:
        """(step, folder) of the newest complete checkpoint, its files checked; None where there is none."""
        found = checkpoints(self.path)
        if not found:
            return None
        verify(found[-1][1])
        return found[-1]

    def write_config(self) -> None:
        """Write config.yaml anew (max_steps may grow at a resume)."""
        write_text(self.path / CONFIG, config_text(self.preset))


def config_text(preset: Preset) -> str:
    """A preset as the text of config.yaml."""
    return yaml.safe_dump(preset.as_dict(), sort_keys=False, width=110, allow_unicode=True)


def holds_run(path: Path) -> bool:
    """Whether a run lies there."""
    return (path / CONFIG).is_file()


def open_run(path: Path) -> RunFolder:
    """A run by its folder. Raises MapformersError when there is none or its config.yaml is damaged."""
    require(
        path.is_dir(),
        f"run: folder {path} must exist, got none; train one with: mapformers train demo --output {path}",
    )
    require(
        holds_run(path),
        f"run: {path} must hold {CONFIG}, got no such file; give the folder named by train --output",
    )
    try:
        plain = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        plain = None
    if not isinstance(plain, dict):
        raise MapformersError(
            f"run: {path / CONFIG} must be readable YAML, got a damaged file; start a new run"
        )
    return RunFolder(path, preset_from(plain))


def check_free(path: Path) -> None:
    """Raise MapformersError unless a new run may start in `path`."""
    require(
        not holds_run(path),
        f"run: {path} must not hold another run, got one; go on with --resume or choose another --output",
    )
    require(
        path.resolve() != Path.cwd(),
        f"run: --output must not be the current folder, got {path}; name a folder in it",
    )
    if path.exists():
        empty = path.is_dir() and not any(path.iterdir())
        require(empty, f"run: {path} must be new or empty, got other files; choose another --output")


def create_run(path: Path, preset: Preset) -> RunFolder:
    """A new run folder with its config and data, put in place by one rename.

    On any failure nothing is left behind.
    """
    check_free(path)
    task_of(preset).check(preset)
    created = [parent for parent in path.absolute().parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f".{path.name}.draft-*"):  # of a start that was killed
            shutil.rmtree(stale)
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.draft-", dir=path.parent))
    except OSError as error:
        raise MapformersError(
            f"run: {path} must be writable, got {error.strerror or error}; choose another --output"
        ) from None
    try:
        draft.chmod(0o755)
        task_of(preset).write_data(preset, draft / DATA)
        config_of(preset, draft / DATA)  # a model that does not fit its data is refused here
        write_text(draft / CONFIG, config_text(preset))
        os.replace(draft, path)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        for parent in created:
            parent.rmdir()
        if isinstance(error, OSError):
            raise MapformersError(
                f"run: {path} could not be written, got {error.strerror or error}; make room"
            ) from None
        raise
    return RunFolder(path, preset)


def resume_run(path: Path, asked: Preset | None, max_steps: int | None) -> RunFolder:
    """An existing run, to go on with. Only training.max_steps may differ from what it was started with.

    asked       what the command line asks for now; None = whatever the run holds
    max_steps   the new number of steps; None = as it was
    """
    run = open_run(path)
    held = run.preset.as_dict()
    for key in _differences(held, held if asked is None else asked.as_dict()):
        require(
            key in ("training.max_steps", "summary", "deviations"),
            f"run: {key} must stay as the run in {path} was started, got another value; drop it or start a "
            "new run",
        )
    if max_steps is not None:
        held["training"]["max_steps"] = max_steps
    return RunFolder(path, preset_from(held))


def _differences(a: Any, b: Any, prefix: str = "") -> list[str]:
    """Dotted names of the values in which two nested dicts differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = []
        for key in sorted(set(a) | set(b)):
            found += _differences(a.get(key), b.get(key), f"{prefix}.{key}" if prefix else str(key))
        return found
    return [] if a == b else [prefix]
