"""One run of a comparison in a process of its own: python -m mapformers.study.worker JSON

The run is an ordinary one (train/run.py). The last line printed holds, as JSON, what the folder does
not: its peak memory, and recall among irrelevant tokens.
"""

import contextlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from mapformers.core.errors import MapformersError
from mapformers.study.robustness import is_recall, robustness
from mapformers.tasks.corpus import write_text
from mapformers.train.folder import open_run
from mapformers.train.run import Request, train

PEAK = "peak_mb.json"


@dataclass(frozen=True)
class Job:
    """A run: preset, folder, settings, steps (None = the preset's), seed, attention of all layers or None."""

    preset: str
    folder: str
    settings: tuple[str, ...]
    max_steps: int | None
    seed: int
    attention: str | None

    def as_json(self) -> str:
        """For the command line of the process."""
        return json.dumps(asdict(self))

    def request(self) -> Request:
        """The same for train/run.py; a run that is there already goes on."""
        return Request(
            self.preset,
            Path(self.folder),
            settings=tuple(self.settings),
            max_steps=self.max_steps,
            seed=self.seed,
            resume=True,
            attention=self.attention,
        )


def main() -> None:
    """Train and score the job of the command line."""
    job = Job(**json.loads(sys.argv[1]))
    try:
        train(job.request())
    except MapformersError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    folder = Path(job.folder)
    found: dict[str, object] = {"peak_mb": _peak_of(folder / PEAK)}
    if is_recall(open_run(folder).preset):
        found["robustness"] = robustness(folder)
    print(json.dumps(found))


def _peak_of(path: Path) -> float | None:
    """Of this process, which trained; of the first one, where it was finished already."""
    if not path.exists():
        write_text(path, json.dumps(_peak_mb()))
    held: float | None = json.loads(path.read_text())
    return held


def _peak_mb() -> float | None:
    """Peak resident size of this process; None where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return None


if __name__ == "__main__":
    main()
