"""The end of a run: its score on held-out data beside that of simple models."""

import json
import sys
from typing import Any

from mapformers.report.page import write_report
from mapformers.tasks.corpus import FACTS, write_text
from mapformers.train.folder import RunFolder
from mapformers.train.loading import load_trained


def score_run(run: RunFolder, seconds: float) -> dict[str, Any]:
    """Score the newest checkpoint on the test split, write results.json and report.html, return the results.

    A run that was scored at this step already is not scored again.
    """
    path = run.path / "results.json"
    trained = load_trained(run.path)
    before = _read(path)
    if before.get("step") == trained.step:
        return before
    _say("scoring on held-out data ...")
    score = run.task.score_model(trained.model, run.preset, run.data)
    results = {
        "preset": run.preset.name,
        "task": run.preset.task,
        "step": trained.step,
        "seconds": round(seconds + before.get("seconds", 0.0), 1),
        "parameters": sum(parameter.numel() for parameter in trained.model.parameters()),
        "score": run.task.score,
        "unit": run.task.unit,
        "test": score.test,
        "baselines": score.baselines,
        **score.more,
        "data": _read(run.data / FACTS),
    }
    write_text(path, json.dumps(results, indent=1))
    write_report(run.path)
    return results


def _read(path: Any) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
