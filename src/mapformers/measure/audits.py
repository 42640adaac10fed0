"""The public audit: entries of the catalogue, specs, and modules of other packages, by the same checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

import mapformers as mf
from mapformers import spec
from mapformers.audit import Report
from mapformers.catalog import CATALOG
from mapformers.core.card import Card
from mapformers.core.errors import MapformersError, require, require_known
from mapformers.measure.peers import DIM, HEADS, Peer, known_peer, make, version_of
from mapformers.report.samples import small_options

LENGTH = 64
# What a port is audited on where full causal attention does not take it.
CARRIERS = {"local_global": "longformer(window=4, global_tokens=2)"}


@dataclass(frozen=True)
class Audited:
    """A report, and what it is about: the spec that was built, or the package and its version."""

    report: Report
    built: str
    version: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"built": self.built, "version": self.version, **self.report.as_dict()}


@dataclass(frozen=True)
class Question:
    """How a module of others is called: see mapformers.audit.audit."""

    target: str
    arguments: dict[str, Any]
    causal: bool | None = None
    dim: int | None = None
    vocab: int | None = None
    mask: str | None = None


def names() -> tuple[str, ...]:
    """All that `audit_entry` knows by name, in the order of the catalogue."""
    return tuple(entry.card.name for entry in CATALOG)  # type: ignore[attr-defined]


def check_name(text: str) -> str:
    """The entry that a name or spec is about. Raises MapformersError with the nearest names."""
    name = spec.parse(text)[0].name
    require_known("audit", "name", name, names())
    return name


def audit_entry(text: str, length: int = LENGTH, seed: int = 0) -> Audited:
    """An entry of the catalogue by name, with small sizes, or a spec; causal where it can be.

    A score term, projection, merge or loss is audited in a layer of full attention.
    Raises MapformersError for unknown names, with the nearest ones.
    """
    name = check_name(text)
    card = next(entry.card for entry in CATALOG if entry.card.name == name)  # type: ignore[attr-defined]
    made, causal, built = _built(card, text)
    report = mf.audit(made, causal=causal, length=length, seed=seed)
    return Audited(Report(text, report.rows, report.notes), built)


def audit_module(question: Question, length: int = LENGTH, seed: int = 0) -> Audited:
    """A module of any package. What a known one needs to be made is filled in where it is not given.

    Raises MapformersError where it cannot be made or called.
    """
    peer = known_peer(question.target) or Peer(question.target.partition(":")[0], question.target, "")
    arguments = {**peer.arguments, **question.arguments}
    dim = question.dim or (DIM if known_peer(question.target) and question.vocab is None else None)
    require(
        dim is not None or question.vocab is not None,
        f"--module: {question.target} must be told what it takes, got nothing; give --dim for vectors or "
        "--vocab for token ids",
    )
    module = make(question.target, arguments, seed, peer.needs_step)
    report = mf.audit(
        module,
        causal=peer.causal if question.causal is None else question.causal,
        dim=dim,
        vocab=question.vocab,
        length=length,
        mask=question.mask or peer.mask,
        seed=seed,
    )
    said = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    rows = Report(question.target, report.rows, report.notes)
    return Audited(rows, f"{question.target}({said})", version_of(peer.package))


def summary(audits: Sequence[Audited]) -> str:
    """A table of 80 columns: the largest change of each kind, and below it what each failure means."""
    kinds = ("future", "gradient", "padding", "batch", "decode")
    lines = [f"{'':<26}" + "".join(f"{kind:>9}" for kind in kinds) + f"{'':>2}verdict"]
    for one in audits:
        worst = one.report.families
        cells = [f"{worst[kind].measured:>9.0e}" if kind in worst else f"{'-':>9}" for kind in kinds]
        name = one.report.subject.partition(":")[0] if one.version else one.report.subject
        name = name if len(name) <= 25 else name[:24] + "…"
        verdict = "passed" if one.report.passed else "FAILED"
        lines.append(f"{name:<26}{''.join(cells)}  {verdict}")
    return "\n".join(lines)


def _built(card: Card, text: str) -> tuple[nn.Module, bool, str]:
    """The module of an entry, whether it is causal, and the spec that made it."""
    full = _with_small_options(card) if text == card.name else text
    if card.kind == "block":
        return *_causal_if_possible(lambda causal: mf.block(full, DIM, HEADS, causal=causal)), full
    if card.kind == "mechanism":
        return *_causal_if_possible(lambda causal: mf.attention(full, DIM, HEADS, causal=causal)), full
    carrier, port = CARRIERS.get(card.name, "full"), {card.kind: full}

    def layer(causal: bool) -> nn.Module:
        return mf.attention(carrier, DIM, HEADS, causal=causal, **port)  # type: ignore[arg-type]

    return *_causal_if_possible(layer), f"{carrier}, {card.kind}={full}"


def _with_small_options(card: Card) -> str:
    options = small_options(card) if card.kind == "mechanism" else {}
    said = ", ".join(f"{key}={value}" for key, value in options.items())
    return f"{card.name}({said})" if said else card.name


def _causal_if_possible(build: Callable[[bool], nn.Module]) -> tuple[nn.Module, bool]:
    """Causal, or as it is where it refuses that; what is wrong with its options is refused both times."""
    try:
        return build(True), True
    except MapformersError:
        return build(False), False
