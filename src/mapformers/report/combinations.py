"""What goes with what: every score term, projection, merge and loss on every mechanism, tried out."""

import torch

import mapformers as mf
from mapformers.catalog import MECHANISMS, SCORES
from mapformers.core.errors import MapformersError
from mapformers.report.samples import small_options

DIM, HEADS, TOKENS = 32, 4, 24
TRIED: dict[str, tuple[str, ...]] = {
    "score": tuple(entry.card.name for entry in SCORES),  # type: ignore[attr-defined]
    "project": (
        "multi_head",
        "multi_query",
        "grouped_query(kv_heads=2)",
        "head_size(size=12)",
        "collaborative",
        "local_global",
        "shared_qk",
    ),
    "merge": ("concatenate", "capsule"),
    "loss": ("disagreement", "disagreement(of=subspace)", "disagreement(of=position)", "guided"),
}


def combinations() -> dict[str, dict[str, dict[str, str]]]:
    """port -> entry -> mechanism -> "ok" or "refuses", by building a layer and running it in training.

    A mechanism that takes causal=True is tried so first, and then without.
    """
    return {
        port: {text: {name: _tried(spec, port, text) for name, spec in _specs().items()} for text in texts}
        for port, texts in TRIED.items()
    }


def as_markdown(found: dict[str, dict[str, dict[str, str]]]) -> str:
    """One table for each port, mechanisms down, entries across."""
    parts = []
    for port, entries in found.items():
        lines = [f"## `{port}=`", ""]
        lines.append("| | " + " | ".join(f"`{text}`" for text in entries) + " |")
        lines.append("|" + " --- |" * (len(entries) + 1))
        for name in _specs():
            lines.append(f"| `{name}` | " + " | ".join(row[name] for row in entries.values()) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _specs() -> dict[str, str]:
    """Every mechanism with options small enough for a few tokens."""
    cards = [entry.card for entry in MECHANISMS]  # type: ignore[attr-defined]
    return {
        card.name: f"{card.name}({', '.join(f'{k}={v}' for k, v in small_options(card).items())})"
        for card in cards
    }


def _tried(spec: str, port: str, text: str) -> str:
    options = {port: text}
    for causal in (True, False):
        try:
            layer = mf.attention(spec, DIM, HEADS, causal=causal, **options)  # type: ignore[arg-type]
            layer.train().attend(torch.zeros(1, TOKENS, DIM))
        except MapformersError:
            continue
        return "ok"
    return "refuses"
