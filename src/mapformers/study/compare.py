"""Models that differ in their attention alone, trained side by side: same data, same order, same start.

Every row and seed is an ordinary run in a folder of its own; what is finished is kept, what was cut off
goes on.
"""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mapformers import mechanism, spec
from mapformers.core.errors import MapformersError, require
from mapformers.measure.record import write_record
from mapformers.report.results import read_run
from mapformers.study.robustness import SHARES
from mapformers.study.tasks import StudyTask, map_attentions, task_of
from mapformers.study.worker import Job
from mapformers.train.models import config_of, parameter_count
from mapformers.train.presets import Preset, load_preset, override, with_attention

ALL = "map"  # stands for the list of map_attentions
MOST_UNEQUAL = 0.02  # share by which parameters may differ
Rows = dict[str, dict[str, Any]]
RunJob = Callable[[Job, "Children"], dict[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    task        a name of study/tasks.py or a preset
    attentions  specs; `map` stands for a list of causal ones
    seeds       runs of each, with seeds 0, 1, ..
    steps       None = those of the task
    settings    section.key=value, for all rows
    workers     runs at once, one thread each when there are several
    """

    task: str
    attentions: tuple[str, ...]
    output: Path
    seeds: int = 3
    steps: int | None = None
    settings: tuple[str, ...] = ()
    workers: int = 1
    allow_unequal: bool = False

    def __post_init__(self) -> None:
        task_of(self.task)
        require(self.seeds >= 1, f"compare: --seeds must be 1 or more, got {self.seeds}; use 3")
        require(self.workers >= 1, f"compare: --workers must be 1 or more, got {self.workers}; use 2")
        require(
            len(self.specs()) >= 2,
            f"compare: --attention must name two or more, got {len(self.specs())}; repeat it, or write map",
        )

    def specs(self) -> tuple[str, ...]:
        """What is compared, each once."""
        found: list[str] = []
        for text in self.attentions:
            found += map_attentions(_length(self._preset())) if text == ALL else [text]
        return tuple(dict.fromkeys(found))

    def _preset(self) -> Preset:
        task = task_of(self.task)
        return override(load_preset(task.preset), (*task.settings, *self.settings))

    def job(self, text: str, seed: int) -> Job:
        """The run of a row and seed."""
        task = task_of(self.task)
        placed = placements(task, text)
        folder = self.output / f"{_slug(text)}-{seed}"
        whole = text if task.layers is None else None
        return Job(
            task.preset, str(folder), (*task.settings, *self.settings, *placed), self.steps, seed, whole
        )

    def preset(self, text: str) -> Preset:
        """The preset of a row, checked. Raises MapformersError where the attention cannot stand there."""
        job = self.job(text, 0)
        made = load_preset(job.preset)
        made = made if job.attention is None else with_attention(made, job.attention)
        made = override(made, job.settings)
        try:
            config_of(made)
        except MapformersError as error:
            raise MapformersError(f"compare: {text} must fit the task {self.task}, got: {error}") from None
        return made

    def plain(self) -> dict[str, Any]:
        """What the rows of one file have in common."""
        task = task_of(self.task)
        return {"preset": task.preset, "settings": [*task.settings, *self.settings], "steps": self.steps}


@dataclass
class Children:
    """The processes that run now, so that all can be ended. Several at once have one thread each."""

    one_thread: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    running: set[Any] = field(default_factory=set)
    ended: bool = False

    def end(self) -> None:
        """End all, and start none any more."""
        with self.lock:
            self.ended = True
            for process in self.running:
                process.kill()


def placements(task: StudyTask, text: str) -> tuple[str, ...]:
    """Settings that put an attention into the layers of a task."""
    if task.layers is None:
        return ()
    parts = [mechanism(part.name, **part.options) for part in spec.parse(text)]
    turned = all("rotary" in part.card.supports for part in parts)
    found = []
    for layer in task.layers:
        found.append(f"model.layers.{layer}.attention={json.dumps(text)}")
        if not turned:
            found.append(f"model.layers.{layer}.rotary=false")
    return tuple(found)


def check_fair(asked: Comparison) -> dict[str, int]:
    """Parameters of each row; nothing is trained before.

    Raises MapformersError where they differ by more than 2 % from the first row, unless that is allowed.
    """
    counts = {text: parameter_count(asked.preset(text)) for text in asked.specs()}
    first, base = next(iter(counts.items()))
    for text, count in counts.items():
        require(
            asked.allow_unequal or abs(count - base) <= MOST_UNEQUAL * base,
            f"compare: parameters must be equal within 2 %, got {base:,} of {first} and {count:,} of {text}; "
            "change a size with --set, or add --allow-unequal",
        )
    return counts


def compare(
    asked: Comparison,
    path: Path | None,
    command: str,
    say: Callable[[str], None],
    run: RunJob | None = None,
) -> dict[str, Any]:
    """Train and score all rows; the result is written after every run.

    run   stands in for the process of a run, in tests
    Returns task, settings and rows (spec to parameters, runs by seed, and summary).
    """
    counts = check_fair(asked)
    rows: Rows = {text: {"parameters": count, "runs": {}} for text, count in counts.items()}
    for text, seed, found in _all_runs(asked, say, run or in_a_process):
        rows[text]["runs"][str(seed)] = found
        rows[text]["summary"] = summary(list(rows[text]["runs"].values()))
        if path is not None:
            write_record(path, "compare", command, body_of(asked, rows))
    return body_of(asked, rows)


def body_of(asked: Comparison, rows: Rows) -> dict[str, Any]:
    """What is written beside date, command and machine."""
    task = task_of(asked.task)
    lower = task.lower_is_better
    return {"task": asked.task, "lower_is_better": lower, "settings": asked.plain(), "rows": rows}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard error over seeds of the score and of each share of irrelevant tokens; medians."""
    made: dict[str, Any] = {"score": mean_and_error([run["score"] for run in runs]), "unit": runs[0]["unit"]}
    for key in ("speed", "peak_mb", "seconds"):
        known = [run[key] for run in runs if run.get(key) is not None]
        made[key] = statistics.median(known) if known else None
    if all("robustness" in run for run in runs):
        shares = {str(share): [run["robustness"][str(share)] for run in runs] for share in SHARES}
        made["robustness"] = {share: mean_and_error(values) for share, values in shares.items()}
    return made


def mean_and_error(values: list[float]) -> dict[str, float]:
    """Mean, and the standard error of the mean; 0 for a single value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "standard_error": error}


def in_a_process(job: Job, children: Children) -> dict[str, Any]:
    """Train and score a run in a process of its own.

    Raises MapformersError with the last line of what it said when it fails.
    """
    folder = Path(job.folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "mapformers.study.worker", job.as_json()]
    with children.lock:
        require(not children.ended, "compare: no run may start, got an end; go on later")
        threads = {"OMP_NUM_THREADS": "1"} if children.one_thread else {}
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **threads}
        )
        children.running.add(process)
    try:
        out, err = process.communicate()
    finally:
        with children.lock:
            children.running.discard(process)
    if process.returncode:
        last = (err.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        raise MapformersError(f"compare: {folder} must train to its end, got {last.removeprefix('error: ')}")
    return {**result_of(folder), **json.loads(out.splitlines()[-1])}


def result_of(folder: Path) -> dict[str, Any]:
    """Score, speed and seconds of a run that has ended."""
    record = read_run(folder)
    speed = [value for _, value in record.curve(record.speed())] if record.speed() else []
    return {
        "score": record.results["test"][record.score],
        "unit": record.unit,
        "speed": statistics.median(speed) if speed else None,
        "counted": record.speed().removesuffix("_per_second"),
        "seconds": record.results["seconds"],
    }


def _all_runs(
    asked: Comparison, say: Callable[[str], None], run: RunJob
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Rows and seeds as they end; a seed of all rows before the next seed."""
    todo = [(text, seed) for seed in range(asked.seeds) for text in asked.specs()]
    children, began, done = Children(one_thread=asked.workers > 1), time.monotonic(), 0
    with ThreadPoolExecutor(asked.workers) as pool:
        waiting: dict[Future[dict[str, Any]], tuple[str, int]] = {
            pool.submit(run, asked.job(text, seed), children): (text, seed) for text, seed in todo
        }
        try:
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    text, seed = waiting.pop(future)
                    found = future.result()
                    done += 1
                    left = (time.monotonic() - began) / done * len(waiting)
                    clock = f"{round(left) // 60}:{round(left) % 60:02}"
                    scored = f"{found['unit']} {found['score']:.4f}"
                    say(f"{done}/{len(todo)}  {text}, seed {seed}: {scored}, about {clock} left")
                    yield text, seed, found
        finally:
            for future in waiting:
                future.cancel()
            children.end()


def _slug(text: str) -> str:
    """A spec as the name of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _length(preset: Preset) -> int:
    """About how many tokens a sequence of a preset has."""
    data = preset.data
    options = getattr(data, "options", {})
    return int(options.get("length") or getattr(data, "context", 0) or getattr(data, "longest", 0) or 512)
