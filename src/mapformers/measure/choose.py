"""Which attention for a length and a use: what cannot is left out, the rest is ranked by measured results.

Rules, each of which gives a reason in words:
  left out   what refuses what is asked for (causal, decoding, cross-attention, the weights of a pretrained
             model), and what needs more memory than there is
  points     the doublings by which it is faster than full attention at that length; 4 times the measured
             accuracy in recall, but for tasks that need not look anything up; 2 where a mechanism is made
             for the task; 1 where its memory in decoding does not grow
Time and memory at a length are read off the measured points, straight between logarithms and beyond them.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

from mapformers import mechanism, spec
from mapformers.catalog import MECHANISMS
from mapformers.core.card import Card
from mapformers.core.errors import require, require_known
from mapformers.core.mechanism import Shape
from mapformers.measure.specs import spec_at

# Task -> (preset to begin with, whether it has to look things up, mechanisms that are made for it)
TASKS: dict[str, tuple[str, bool, tuple[str, ...]]] = {
    "language": ("laptop", True, ()),
    "recall": ("mqar", True, ()),
    "text-classification": ("text-classification", False, ("longformer", "bigbird")),
    "translation": ("translation", True, ()),
    "images": ("image-classification", False, ("axial", "image_local")),
    "audio": ("audio-classification", False, ()),
    "series": ("forecast", False, ("informer",)),
}
RECALL_POINTS, FITTING_POINTS, FLAT_POINTS = 4.0, 2.0, 1.0
# A doubling of speed is a point; beyond 64 times the rest of a model takes the time, so it breaks ties only.
MOST_SPEED_POINTS, TIE_POINTS = 6.0, 0.001
NO_SOFTMAX = ("linear", "rfa", "delta")  # weights from feature maps; performer's estimate a softmax
GROWING = (
    "full",
    "memory_compressed",
    "low_rank_band",
    "strided",
    "random",
    "sac",
    "moba",
    "nsa",
    "informer",
)


@dataclass(frozen=True)
class Question:
    """What is asked for. length in tokens; memory_mb for a forward and backward of one layer, None = any."""

    length: int
    causal: bool = False
    decode: bool = False
    cross: bool = False
    pretrained: bool = False
    task: str | None = None
    memory_mb: float | None = None

    def __post_init__(self) -> None:
        require(self.length >= 1, f"choose: --length must be 1 or more, got {self.length}; write 4k")
        if self.task is not None:
            require_known("choose", "--task", self.task, TASKS)
        require(
            self.memory_mb is None or self.memory_mb > 0,
            f"choose: --memory must be above 0, got {self.memory_mb} MB; write 8GB",
        )


@dataclass(frozen=True)
class Choice:
    """A mechanism with its points and reasons; left_out says why it cannot, else it is empty.

    seconds, memory_mb   predicted for a forward and backward of 8 heads of 64, None = not measured
    """

    name: str
    spec: str
    points: float
    reasons: tuple[str, ...]
    seconds: float | None
    memory_mb: float | None
    left_out: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**vars(self), "reasons": list(self.reasons)}


def choose(question: Question, bench: dict[str, Any] | None, recall: dict[str, Any] | None) -> list[Choice]:
    """All mechanisms, the best first; those that are left out stand at the end.

    bench, recall   results as measure/shipped.py reads them (bench, compare-mqar); None = not there
    """
    made = [_judged(entry.card, question, bench, recall) for entry in MECHANISMS]  # type: ignore[attr-defined]
    return sorted(made, key=lambda one: (bool(one.left_out), -one.points))


def predicted(rows: dict[str, dict[str, Any]], n: int, value: str) -> float | None:
    """A figure at n tokens from the measured points: `seconds`, `memory` or `faster`; None without two."""
    read = {
        "seconds": lambda row: row["core"]["min"],
        "faster": lambda row: row["core"]["times_faster"],
        "memory": lambda row: row["peak_mb"],
    }[value]
    known = sorted((int(k), read(row)) for k, row in rows.items() if "core" in row)
    known = [(k, v) for k, v in known if v is not None and v > 0]
    if len(known) < 2:
        return None
    right = next((i for i, (k, _) in enumerate(known) if k >= n and i > 0), len(known) - 1)
    (low, a), (high, b) = known[right - 1], known[right]
    slope = (math.log(b) - math.log(a)) / (math.log(high) - math.log(low))
    return float(math.exp(math.log(a) + slope * (math.log(n) - math.log(low))))


def recall_of(name: str, recall: dict[str, Any] | None) -> float | None:
    """Measured accuracy of a mechanism in recall, None where it was not compared."""
    for text, row in ({} if recall is None else recall["rows"]).items():
        parts = spec.parse(text)
        if len(parts) == 1 and parts[0].name == name and row["runs"]:
            return float(row["summary"]["score"]["mean"])
    return None


def _judged(
    card: Card, question: Question, bench: dict[str, Any] | None, recall: dict[str, Any] | None
) -> Choice:
    text = spec_at(card.name, question.length)
    rows = {} if bench is None else bench["points"].get(card.name, {})
    seconds, memory, faster = (
        predicted(rows, question.length, value) for value in ("seconds", "memory", "faster")
    )
    points, reasons = 0.0, []
    if faster is not None:
        doublings = math.log2(faster)
        points += min(doublings, MOST_SPEED_POINTS) + TIE_POINTS * doublings
        reasons.append(_said_speed(faster, question.length))
    else:
        reasons.append("speed not measured")
    more, said = _for_task(card.name, question.task, recall)
    points, reasons = points + more, reasons + said
    if question.decode and card.name not in GROWING:
        points += FLAT_POINTS
        reasons.append("memory in decoding does not grow")
    out = _why_not(card, text, question, memory)
    return Choice(card.name, text, round(points, 3), tuple(reasons), seconds, memory, out)


@functools.cache
def _learns(name: str) -> bool:
    """Whether it has parameters, at the length at which they are fewest."""
    (part,) = spec.parse(spec_at(name, 64))
    bound = mechanism(part.name, **part.options).bind(Shape(2, 2, 8))
    return any(parameter.requires_grad for parameter in bound.parameters())


def _said_speed(faster: float, n: int) -> str:
    if faster >= 1:
        return f"{faster:.1f}x faster than full attention at {n:,} tokens"
    return f"{1 / faster:.1f}x slower than full attention at {n:,} tokens"


def _for_task(name: str, task: str | None, recall: dict[str, Any] | None) -> tuple[float, list[str]]:
    _, looks_up, made_for = ("", True, ()) if task is None else TASKS[task]
    points, reasons = 0.0, []
    accuracy = recall_of(name, recall) if looks_up else None
    if accuracy is not None:
        points += RECALL_POINTS * accuracy
        reasons.append(f"accuracy {accuracy:.2f} in recall")
    elif looks_up and recall is not None:
        reasons.append("recall not measured")
    if name in made_for:
        points += FITTING_POINTS
        reasons.append(f"made for {task}")
    return points, reasons


def _why_not(card: Card, text: str, question: Question, memory: float | None) -> str:
    (part,) = spec.parse(text)
    made = mechanism(part.name, **part.options)
    refusals = (
        (question.causal and "causal" not in card.supports, "cannot be causal"),
        (not question.causal and "bidirectional" not in card.supports, "is causal only"),
        (
            question.decode and not ("decode" in card.supports and made.can_decode()),
            "cannot decode token by token",
        ),
        (question.cross and "cross" not in card.supports, "takes no cross-attention"),
        (
            question.pretrained and card.name in NO_SOFTMAX,
            "weighs keys by other weights than a softmax: a trained model has to be trained anew",
        ),
        (
            question.pretrained and _learns(card.name),
            "has parameters of its own, which have to be trained first",
        ),
        (
            question.memory_mb is not None and memory is not None and memory > question.memory_mb,
            f"needs about {memory or 0:,.0f} MB",
        ),
    )
    return next((reason for refused, reason in refusals if refused), "")
