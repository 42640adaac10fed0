"""What an audit found: a row for each check, a table of 80 columns, and what failures mean in words."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from typing import Any

COLUMNS = 80
GRADIENT = "future: gradient"
# What a failure means. `row` is the worst one of its kind, `size` the change it measured.
FAILURES = {
    "gradient": "The mask leaks: an output depends on values of later tokens (derivative {size}), so the "
    "model reads what it is asked to predict.",
    "selection": "The selection leaks: no value comes from a later token, but later tokens decide how the "
    "past is seen ({row.meaning}), so training sees hints that decoding will not have.",
    "future": "The future leaks: {row.meaning}, so losses in training are too good and decoding will not "
    "repeat them.",
    "padding": "Padding is not ignored: what stands there moves real outputs by up to {size}, so results "
    "depend on how a batch was padded.",
    "batch": "Rows mix: other rows of the batch move a row's outputs by up to {size}, so a prediction "
    "depends on what it is batched with.",
    "determinism": "Two calls on the same input differ by {size}: something is drawn anew in eval mode.",
    "state": "A forward in eval mode changes the module ({row.meaning}), so evaluating it trains it.",
    "decode": "Decoding token by token differs from the whole sequence by {size}, so generated text does "
    "not follow the model that was trained.",
}


@dataclass(frozen=True)
class Check:
    """One row of a report: measured must not exceed limit."""

    name: str
    passed: bool
    measured: float
    limit: float
    meaning: str


@dataclass(frozen=True)
class Report:
    """What an audit found, and in notes what it could not check. Prints as a table of 80 columns."""

    subject: str
    rows: tuple[Check, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(row.passed for row in self.rows)

    @property
    def families(self) -> dict[str, Check]:
        """The worst row of each kind of check (future, gradient, padding, batch, decode, ..), by name."""
        worst: dict[str, Check] = {}
        for row in self.rows:
            family = "gradient" if row.name == GRADIENT else row.name.partition(":")[0]
            held = worst.get(family)
            if held is None or (held.passed, -held.measured) > (row.passed, -row.measured):
                worst[family] = row
        return worst

    @property
    def explanations(self) -> list[str]:
        """What each failure means, a sentence each; empty when all passed."""
        failed = {family: row for family, row in self.families.items() if not row.passed}
        if "gradient" in failed:
            failed.pop("future", None)  # the same leak, seen twice
        elif "future" in failed and "gradient" in self.families:
            failed = {"selection": failed.pop("future"), **failed}
        return [
            FAILURES[family].format(row=row, size=f"{row.measured:.1e}") for family, row in failed.items()
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        rows = [asdict(row) for row in self.rows]
        said = {"subject": self.subject, "passed": self.passed, "explanations": self.explanations}
        return {**said, "rows": rows, "notes": list(self.notes)}

    def __str__(self) -> str:
        failed = sum(not row.passed for row in self.rows)
        verdict = "passed" if failed == 0 else f"FAILED {failed} of {len(self.rows)} checks"
        lines = [textwrap.shorten(f"audit of {self.subject}: {verdict}", COLUMNS)]
        lines.append(f"{'check':<46}{'result':<7}{'measured':>13}{'limit':>13}")
        for row in self.rows:
            result = "ok" if row.passed else "FAILED"
            lines.append(f"{row.name:<46}{result:<7}{row.measured:>13.2e}{row.limit:>13.1e}")
            if not row.passed:
                lines += textwrap.wrap(row.meaning, COLUMNS, initial_indent="    ", subsequent_indent="    ")
        for text in (*self.explanations, *self.notes):
            lines += textwrap.wrap(text, COLUMNS, initial_indent="- ", subsequent_indent="  ")
        return "\n".join(lines)
