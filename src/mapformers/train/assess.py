"""`mapformers eval`: a trained run scored on its own held-out bytes or on another source."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mapformers.core.errors import require, require_known
from mapformers.tasks.corpus import write_corpus
from mapformers.tasks.source import plan_source
from mapformers.train.evaluate import bits_per_byte, prefix_only
from mapformers.train.folder import RunFolder
from mapformers.train.loading import load_trained

SPLITS = ("train", "valid", "test", "english", "all")


def assess(
    run: Path,
    data: str | None = None,
    split: str | None = None,
    positions: int | None = None,
    stride: int | None = None,
    tick: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Bits per byte of a run, as plain data.

    data       another SOURCE; None = the run's own
    split      default: test; all of a file or folder that is not the run's own
    positions  score this many positions again by decoding; stride as in `bits_per_byte`
    Raises MapformersError for bad input. Nothing is written into the run folder.
    """
    if split is not None:
        require_known("eval", "--split", split, SPLITS)
    trained = load_trained(run)
    with tempfile.TemporaryDirectory(prefix="mapformers-") as scratch:
        text, facts = _text(trained.run, data, split, Path(scratch))
        if positions is not None:
            limit = len(text) - 1
            require(
                0 < positions <= limit,
                f"eval: --prefix-only must lie in 1..{limit}, got {positions}; change it",
            )
        score = bits_per_byte(trained.model, text, trained.run.preset.data.context, stride, tick)
        result = {
            "bits_per_byte": score.bits_per_byte,
            "bytes": score.bytes,
            "context": score.context,
            "stride": score.stride,
            **facts,
            "step": trained.step,
        }
        if positions is not None:
            result |= _prefix(prefix_only(trained.model, text, positions))
    return result


def _text(
    run: RunFolder, data: str | None, split: str | None, scratch: Path
) -> tuple[np.ndarray, dict[str, Any]]:
    """The bytes to score and where they come from."""
    if data is None or data == run.preset.data.source:
        corpus, split = run.corpus(), split or "test"
    else:
        split = split or ("test" if data == "stdlib" or data.startswith("hf:") else "all")
        plan = plan_source(data)
        names = tuple(name for name in plan.names if name != "english") if split == "all" else (split,)
        corpus = write_corpus(plan, scratch, {}, names)
    return corpus.split(split), {
        "source": corpus.facts["source"],
        "split": split,
        "sha256": corpus.facts["sha256"],
    }


def _prefix(score: Any) -> dict[str, Any]:
    return {
        "prefix_only_bits_per_byte": score.prefix_only,
        "teacher_forced_on_those": score.teacher_forced,
        "difference": score.difference,
        "largest_difference": score.largest_difference,
        "positions": score.positions,
        "method": score.method,
        "agrees": score.agrees,
    }
