"""The end of a run: held-out bits per byte beside simple models, and decoding beside teacher forcing."""

import json
import sys
from dataclasses import asdict
from typing import Any

from mapformers.report.page import write_report
from mapformers.tasks.baselines import baselines
from mapformers.tasks.corpus import write_text
from mapformers.train.evaluate import bits_per_byte, prefix_only
from mapformers.train.folder import RunFolder
from mapformers.train.loading import load_trained

POSITIONS = 256  # of the prefix-only check


def score_run(run: RunFolder, seconds: float) -> dict[str, Any]:
    """Score the newest checkpoint on the test split, write results.json and report.html, return the results.

    A run that was scored at this step already is not scored again.
    """
    path = run.path / "results.json"
    trained, corpus = load_trained(run.path), run.corpus()
    before = _read(path)
    if before.get("step") == trained.step:
        return before
    test = corpus.split("test")
    _say(f"scoring {len(test) - 1:,} held-out bytes ...")
    score = bits_per_byte(trained.model, test, run.preset.data.context)
    prefix = prefix_only(trained.model, test, min(POSITIONS, run.preset.data.context, len(test) - 1))
    results = {
        "preset": run.preset.name,
        "step": trained.step,
        "seconds": round(seconds + before.get("seconds", 0.0), 1),
        "parameters": sum(parameter.numel() for parameter in trained.model.parameters()),
        "test": asdict(score),
        "prefix": {**asdict(prefix), "agrees": prefix.agrees},
        "baselines": before.get("baselines") or baselines(corpus.split("train"), test).as_dict(),
        "data": corpus.facts,
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
