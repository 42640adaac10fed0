"""What the map knows of each place, out of cards and result files; what was not measured is absent."""

from __future__ import annotations

import base64
import itertools
import re
import unicodedata
from dataclasses import asdict
from importlib.resources.abc import Traversable
from typing import Any

import numpy as np

from mapformers.catalog import catalog
from mapformers.core.card import CAPABILITIES, Card
from mapformers.measure.choose import TASKS, Question, choose, predicted, recall_of
from mapformers.measure.shipped import shipped
from mapformers.measure.specs import bench_specs
from mapformers.report.samples import sample_weights, small_options
from mapformers.site.layout import layout
from mapformers.site.lineage import DERIVES

PATTERN = 32  # tokens of the picture of a mechanism
AT = 16384  # tokens at which places are compared on the map
LENGTHS = (1024, 4096, 16384, 65536)
SHOWN = 6
USES = {
    "any": {},
    "causal": {"causal": True},
    "decode": {"causal": True, "decode": True},
    "cross": {"cross": True},
}
GREEK = {
    name: unicodedata.lookup(f"GREEK SMALL LETTER {name.upper()}")
    for name in ("phi", "mu", "alpha", "beta", "sigma", "gamma", "theta")
} | {"sum": unicodedata.lookup("N-ARY SUMMATION")}
_MARK = re.compile(
    r"(?P<sub>(?<=[A-Za-z'\])])_(?:\((?P<sub_in>[^()]*)\)|(?P<sub_one>[A-Za-z0-9]+)))"
    r"|(?P<sup>\^(?:\((?P<sup_in>[^()]*)\)|(?P<sup_one>-?[A-Za-z0-9]+)))"
    r"|`(?P<option>[^`]*)`|(?P<hat>[A-Za-z])\^(?=[ .,)]|$)"
    r"|(?P<word>\b(?:" + "|".join(GREEK) + r")(?=\b|_))|(?P<sign><=|>=|<-|!=)"
)
SIGNS = {"<=": "≤", ">=": "≥", "<-": "←", "!=": "≠"}


def map_data(where: Traversable | None = None) -> dict[str, Any]:
    """Everything that the page shows, as plain data.

    where   a folder with result files in place of those that come with the package
    """
    cards = catalog()
    plan = layout(cards)
    results = {
        name: shipped(name, kind, where)
        for name, kind in (
            ("bench", "bench"),
            ("audit", "audit"),
            ("audit-peers", "audit"),
            ("compare-mqar", "compare"),
        )
    }
    places = {place.name: asdict(place) for place in plan.places}
    return {
        "width": plan.width,
        "height": plan.height,
        "regions": [asdict(region) for region in plan.regions],
        "lines": [{"child": c, "parent": p, "why": why} for c, p, why in DERIVES],
        "capabilities": CAPABILITIES,
        "sources": {name: None if found is None else _source(found) for name, found in results.items()},
        "places": [{**places[card.name], **_place(card, results)} for card in cards],
        "choices": _choices(results["bench"], results["compare-mqar"]),
        "at": AT,
    }


def formula_parts(text: str) -> list[tuple[str, str]]:
    """A formula of a card as (plain | sub | sup | i, text), with Greek letters, hats and signs."""
    parts: list[tuple[str, str]] = []
    end = 0
    for match in _MARK.finditer(text):
        if match.start() > end:
            parts.append(("plain", text[end : match.start()]))
        found = match.groupdict()
        if found["sub"] or found["sup"]:
            kind = "sub" if found["sub"] else "sup"
            parts.append((kind, found[f"{kind}_in"] or found[f"{kind}_one"] or ""))
        elif found["option"]:
            parts.append(("i", found["option"]))
        elif found["hat"]:
            parts.append(("plain", found["hat"] + "\N{COMBINING CIRCUMFLEX ACCENT}"))
        else:
            parts.append(("plain", GREEK.get(match[0], "") or SIGNS[match[0]]))
        end = match.end()
    return [*parts, ("plain", text[end:])] if end < len(text) else parts


def _source(found: dict[str, Any]) -> dict[str, str]:
    """Date, machine and command beneath a figure."""
    machine = found["machine"]
    text = (
        f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores, torch {machine['torch']}"
    )
    return {"date": found["date"], "machine": text, "command": found["command"]}


def _place(card: Card, results: dict[str, Any]) -> dict[str, Any]:
    bench = results["bench"]
    rows = {} if bench is None else bench["points"].get(card.name, {})
    audits = {} if results["audit"] is None else {one["subject"]: one for one in results["audit"]["subjects"]}
    return {
        "card": card.as_dict(),
        "formula": formula_parts(card.formula),
        "pattern": _pattern(card),
        "curve": _curve(rows),
        "faster": predicted(rows, AT, "faster"),
        "memory": predicted(rows, AT, "memory"),
        "recall": recall_of(card.name, results["compare-mqar"]),
        "audit": audits.get(card.name),
        "peers": _peers(card.name, results["audit-peers"]),
        "code": _code(card),
    }


def _curve(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Milliseconds of a forward and backward, of SDPA beside it, and MB, by length."""
    return [
        {
            "n": int(n),
            "ms": 1000 * row["core"]["min"],
            "sdpa": 1000 * row["sdpa_core"]["min"],
            "mb": row["peak_mb"],
            "spec": row["spec"],
        }
        for n, row in sorted(rows.items(), key=lambda item: int(item[0]))
        if "core" in row
    ]


def _pattern(card: Card) -> str | None:
    """base64 of [PATTERN, PATTERN] bytes: weights beside the largest of their row."""
    if card.kind != "mechanism":
        return None
    weights = sample_weights(card, small_options(card), PATTERN).clamp(min=0)
    shown = weights / weights.amax(-1, keepdim=True).clamp(min=1e-9)
    return base64.b64encode(np.rint(255 * shown.numpy()).astype(np.uint8).tobytes()).decode("ascii")


def _peers(name: str, found: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Audits of packages that come from the same paper."""
    from mapformers.measure.peers import PEERS

    targets = {peer.target for peer in PEERS if peer.of == name}
    subjects = [] if found is None else found["subjects"]
    return [
        {
            "package": one["subject"].partition(":")[0],
            "version": one["version"],
            "passed": one["passed"],
            "said": " ".join(one["explanations"]) or "No check failed.",
        }
        for one in subjects
        if one["subject"] in targets
    ]


def _code(card: Card) -> str:
    """What to type, in Python."""
    causal = ", causal=True" if "causal" in card.supports else ""
    if card.kind == "mechanism":
        return f'mf.attention("{bench_specs(1024)[card.name]}", dim=512, heads=8{causal})'
    if card.kind == "block":
        return f'mf.block("{card.name}", dim=512, heads=8)'
    return f'mf.attention("full", dim=512, heads=8, {card.kind}="{card.name}")'


def _choices(bench: dict[str, Any] | None, recall: dict[str, Any] | None) -> dict[str, list[list[str]]]:
    """Answers of the chooser: "length use pretrained task" -> [spec, name, reasons] of the best."""
    found = {}
    for n, (use, needs), pretrained, task in itertools.product(
        LENGTHS, USES.items(), (False, True), (None, *TASKS)
    ):
        ranked = choose(Question(n, pretrained=pretrained, task=task, **needs), bench, recall)
        fit = [one for one in ranked if not one.left_out][:SHOWN]
        found[f"{n} {use} {int(pretrained)} {task or 'any'}"] = [
            [one.spec, one.name, "; ".join(one.reasons)] for one in fit
        ]
    return found
