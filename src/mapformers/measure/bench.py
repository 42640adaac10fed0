"""The benchmark: points one after the other, each in a process of its own, kept in a file after every one."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapformers.core.errors import MapformersError, require, require_known
from mapformers.kernels.native.library import load
from mapformers.measure.point import HEAD_DIM, HEADS, TOLERANCES, Point
from mapformers.measure.record import read_record, write_record
from mapformers.measure.specs import spec_at

KERNELS = ("native", "torch")
MeasurePoint = Callable[[Point], dict[str, Any]]
Points = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Bench:
    """What is measured.

    mechanisms  names of the catalogue or specs
    lengths     tokens, rising
    dtype       float32, bfloat16 or float64
    kernel      native, or torch for the path without it
    rounds      timed runs of each; long ones are repeated less often
    peers       packages of others, by their names in measure/bench_peers.py
    """

    mechanisms: tuple[str, ...]
    lengths: tuple[int, ...]
    dtype: str = "float32"
    kernel: str = "native"
    rounds: int = 5
    peers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_known("bench", "--dtype", self.dtype, TOLERANCES)
        require_known("bench", "--kernel", self.kernel, KERNELS)
        require(self.rounds >= 1, f"bench: --rounds must be 1 or more, got {self.rounds}; use 5")
        require(
            bool(self.lengths) and min(self.lengths) >= 64,
            f"bench: --lengths must be 64 or more, got {self.lengths}; write 1k,4k",
        )
        missing = "" if self.kernel != "native" or load().library else load().reason
        require(not missing, f"bench: --kernel native must be there, got {missing}; write --kernel torch")

    def settings(self) -> dict[str, Any]:
        """What points of one file have in common."""
        sizes = {"batch": 1, "heads": HEADS, "head_dim": HEAD_DIM}
        return {**sizes, "dtype": self.dtype, "kernel": self.kernel, "rounds": self.rounds}

    def points(self) -> Iterator[tuple[str, Point]]:
        """All of them with their names, the shortest lengths first."""
        for n in self.lengths:
            for name in self.mechanisms:
                yield name, Point(spec_at(name, n), n, self.dtype, self.kernel, self.rounds)
            for name in self.peers:
                yield name, Point(name, n, self.dtype, self.kernel, self.rounds, peer=True)


@dataclass
class Progress:
    """Says which point runs, and how long the rest will take by what the points so far took."""

    todo: list[int]  # tokens of the points to come
    say: Callable[[str], None]
    weight: float = 0.0  # of the points that are done
    seconds: float = 0.0
    number: int = 0

    def begin(self, name: str) -> None:
        """Before a point."""
        self.number += 1
        rest = sum(map(_weight, self.todo))
        whole = round(self.seconds / self.weight * rest) if self.weight else 0
        left = f", about {whole // 60}:{whole % 60:02} left" if self.weight else ""
        total = self.number - 1 + len(self.todo)
        self.say(f"{self.number}/{total}  {name} at {self.todo[0]:,} tokens{left}")

    def end(self, seconds: float) -> None:
        """After it."""
        self.weight += _weight(self.todo.pop(0))
        self.seconds += seconds


def _weight(n: int) -> float:
    """How long a point takes, in some unit: starting a process, and then about as the tokens."""
    return 1 + n / 2048


def held_points(path: Path | None, bench: Bench, resume: bool) -> Points:
    """The points of an earlier run that this one goes on with.

    Raises MapformersError for a file that is there without `resume`, and for one of other settings.
    """
    if path is None or not path.exists():
        return {}
    require(resume, f"bench: {path} exists already, got no --resume; add it, or name another file")
    held = read_record(path, "bench")
    require(
        held.get("settings") == bench.settings(),
        f"bench: {path} must be of the settings {bench.settings()}, got {held.get('settings')}; name another "
        "file",
    )
    points: Points = held["points"]
    return points


def run_bench(
    bench: Bench,
    path: Path | None,
    command: str,
    say: Callable[[str], None],
    resume: bool = False,
    measure: MeasurePoint | None = None,
) -> dict[str, Any]:
    """Measure all points; the file is written after each, and points that it holds are kept.

    measure   stands in for the process of a point, in tests
    Returns settings, points (name, then length as text) and summary (name to growth and crossover).
    """
    measure = in_a_process if measure is None else measure
    points = held_points(path, bench, resume)
    todo = [(name, point) for name, point in bench.points() if str(point.length) not in points.get(name, {})]
    progress = Progress([point.length for _, point in todo], say)
    for name, point in todo:
        progress.begin(name)
        began = time.monotonic()
        points.setdefault(name, {})[str(point.length)] = measure(point)
        progress.end(time.monotonic() - began)
        if path is not None:
            write_record(path, "bench", command, body_of(bench, points))
    return body_of(bench, points)


def body_of(bench: Bench, points: Points) -> dict[str, Any]:
    """What is written beside date, command and machine."""
    return {"settings": bench.settings(), "points": points, "summary": summary_of(points)}


def in_a_process(point: Point) -> dict[str, Any]:
    """The figures of a point from a fresh process, which ends with this one.

    Raises MapformersError with the last line of what it said when it fails.
    """
    words = [sys.executable, "-m", "mapformers.measure.point", point.as_json()]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, err = process.communicate()
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        last = (err.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        if process.returncode < 0:
            last = f"killed by signal {-process.returncode}, perhaps for want of memory"
        if point.peer or process.returncode < 0:
            return {"spec": point.spec, "left_out": last[:200], "peer": point.peer}
        raise MapformersError(f"bench: {point.spec} at {point.length} tokens must run, got {last}; report it")
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def summary_of(points: Points) -> dict[str, dict[str, Any]]:
    """Growth of time and memory between the first and the last length, and where SDPA is met."""
    return {
        name: {
            "growth_time": growth(rows, lambda row: row["core"]["min"]),
            "growth_memory": growth(rows, lambda row: row["peak_mb"]),
            "crossover": crossover(rows),
        }
        for name, rows in points.items()
    }


def growth(rows: dict[str, dict[str, Any]], of: Callable[[dict[str, Any]], float | None]) -> float | None:
    """p in cost ~ n^p between the shortest and the longest length that were measured; None with only one."""
    costs = {int(n): of(row) for n, row in rows.items() if "core" in row}
    known = {n: cost for n, cost in sorted(costs.items()) if cost is not None and cost > 0}
    if len(known) < 2:
        return None
    low, high = min(known), max(known)
    return math.log(known[high] / known[low]) / math.log(high / low)


def crossover(rows: dict[str, dict[str, Any]]) -> float | None:
    """Tokens from which it is faster than SDPA, between two measured lengths; 0 = at all, None = at none.

    Straight between two points of log length and log ratio.
    """
    ratios = {int(n): row["core"]["times_faster"] for n, row in rows.items() if "core" in row}
    lengths = sorted(ratios)
    slower = [i for i, n in enumerate(lengths) if ratios[n] < 1]
    if not lengths or (slower and slower[-1] == len(lengths) - 1):
        return None
    if not slower:
        return 0.0
    low, high = lengths[slower[-1]], lengths[slower[-1] + 1]
    share = -math.log(ratios[low]) / (math.log(ratios[high]) - math.log(ratios[low]))
    return float(low * (high / low) ** share)


def reds(points: Points) -> list[str]:
    """Names with a length at which they deviate from their definition."""
    return [name for name, rows in points.items() if any("red" in row for row in rows.values())]
