"""A comparison as a table of 80 columns and as a picture."""

import textwrap
from pathlib import Path
from typing import Any

from mapformers.report.style import looks, new_figure, save

NAME = 35


def sorted_rows(body: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(spec, row) of the rows that have runs, the best first."""
    done = [(text, row) for text, row in body["rows"].items() if row["runs"]]
    sign = 1 if body["lower_is_better"] else -1
    return sorted(done, key=lambda item: sign * item[1]["summary"]["score"]["mean"])


def compare_table(body: dict[str, Any]) -> str:
    """Score, speed, memory and parameters, the best row first; then recall among irrelevant tokens."""
    rows = sorted_rows(body)
    if not rows:
        return "no run has ended"
    unit = rows[0][1]["summary"]["unit"]
    counted = next(iter(rows[0][1]["runs"].values())).get("counted") or "examples"
    lines = [f"{'attention':<{NAME}} {unit[:17]:>17} {counted[:7] + '/s':>9} {'MB':>6} {'params':>9}"]
    for text, row in rows:
        one = row["summary"]
        speed = "-" if one["speed"] is None else f"{one['speed']:,.0f}"
        memory = "-" if one["peak_mb"] is None else f"{one['peak_mb']:,.0f}"
        cells = f"{_figure(one['score']):>17} {speed:>9} {memory:>6} {row['parameters']:>9,}"
        lines += _named(text, cells)
    if any("robustness" in row["summary"] for _, row in rows):
        lines += ["", *_robustness(rows)]
    seeds = max(len(row["runs"]) for _, row in rows)
    note = (
        f"{body['task']}: mean and standard error over {seeds} seed{'s' * (seeds > 1)}; same start, data and "
        "steps for all rows. Speed and MB (peak of the process, with Python and torch) are medians."
    )
    return "\n".join([*lines, "", *textwrap.wrap(note, 80)])


def save_plot(body: dict[str, Any], path: Path) -> None:
    """Score with its standard error, and speed, a line for each row; recall among irrelevant tokens beside it
    where there is any.

    Raises MapformersError for another ending than .svg, .png, .pdf, and without matplotlib.
    """
    rows = sorted_rows(body)
    robust = any("robustness" in row["summary"] for _, row in rows)
    figure, axes = new_figure(11.5 if robust else 7.5, 1.0 + 0.26 * max(8, len(rows)), 3 if robust else 2)
    marked = list(zip(_names(rows), rows, looks(), strict=False))
    for place, (_, (_, row), look) in enumerate(marked):
        one = row["summary"]
        value, error = one["score"]["mean"], one["score"]["standard_error"]
        axes[0].errorbar(value, place, xerr=error, color=look.colour, marker=look.marker, ms=5)
        axes[1].barh(place, one["speed"] or 0.0, color=look.colour, height=0.6)
        if robust and "robustness" in one:
            shares = [100 * float(share) for share in one["robustness"]]
            means = [found["mean"] for found in one["robustness"].values()]
            axes[2].plot(shares, means, look.dash, color=look.colour, marker=look.marker, ms=4)
    for one in axes[:2]:
        one.set_ylim(len(rows) - 0.5, -0.5)
        one.set_yticks(
            range(len(rows)), [name for name, _, _ in marked] if one is axes[0] else [""] * len(rows)
        )
    counted = next(iter(rows[0][1]["runs"].values())).get("counted") or "examples" if rows else "examples"
    axes[0].set_xlabel(rows[0][1]["summary"]["unit"] if rows else "")
    axes[1].set_xlabel(f"{counted} per second in training")
    if robust:
        axes[2].set_xlabel("irrelevant tokens, %")
        axes[2].set_ylabel("accuracy")
    save(figure, path)


def _names(rows: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Specs, or names alone where those are long and tell the rows apart."""
    short = [text.partition("(")[0] for text, _ in rows]
    return [
        text if len(text) <= NAME - 5 or short.count(name) > 1 else f"{name}(..)"
        for name, (text, _) in zip(short, rows, strict=True)
    ]


def _robustness(rows: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Accuracy by the share of irrelevant tokens."""
    shares = next(list(row["summary"]["robustness"]) for _, row in rows if "robustness" in row["summary"])
    head = " ".join(f"{f'{100 * float(share):.0f} %':>10}" for share in shares)
    lines = [f"{'irrelevant tokens':<{NAME}} {head}"]
    for text, row in rows:
        if "robustness" in row["summary"]:
            values = row["summary"]["robustness"].values()
            lines += _named(text, " ".join(f"{value['mean']:>10.3f}" for value in values))
    return lines


def _named(text: str, cells: str) -> list[str]:
    """A row; a long spec stands on a line of its own."""
    if len(text) <= NAME:
        return [f"{text:<{NAME}} {cells}"]
    return [*textwrap.wrap(text, 80, subsequent_indent="  "), f"{'':<{NAME}} {cells}"]


def _figure(value: dict[str, float]) -> str:
    return f"{value['mean']:.4f} ± {value['standard_error']:.4f}"
