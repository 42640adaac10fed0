"""Draw docs/pictures from benchmarks/results: one picture for the newest result of each kind with a chart.

python tools/curves.py FOLDER

A result has `charts`, drawn side by side, each with x and y (labels), lines (name to points) and, where
wanted, log: "x", or "both" axes logarithmic.
"""

import json
import sys
from pathlib import Path
from typing import Any

from mapformers.report.style import looks, new_figure, save

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
DATE = len("2026-01-01-")


def newest_charts() -> dict[str, list[dict[str, Any]]]:
    """Charts by the name of their result; files begin with their date."""
    found = {}
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if "charts" in result:
            found[path.stem[DATE:]] = result["charts"]
    return found


def draw(charts: list[dict[str, Any]], path: Path) -> None:
    """Axes side by side on one scale, in each a line for each name."""
    figure, axes = new_figure(0.6 + 5.2 * len(charts), 4.0, len(charts))
    for one, chart in zip(axes, charts, strict=True):
        if one is not axes[0]:
            one.sharey(axes[0])
        for (name, points), look in zip(chart["lines"].items(), looks(), strict=False):
            xs, ys = zip(*points, strict=True)
            is_rule = name.startswith("m^")
            marker, dash = ("", ":") if is_rule else (look.marker, look.dash)
            one.plot(xs, ys, dash, color="grey" if is_rule else look.colour, marker=marker, ms=4, label=name)
        if chart.get("log") in ("x", "both"):
            one.set_xscale("log", base=2)
        if chart.get("log") == "both":
            one.set_yscale("log")
        one.set_xlabel(chart["x"])
        one.set_ylabel(chart["y"])
        one.legend(fontsize=8, frameon=False)
    save(figure, path)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, charts in newest_charts().items():
        draw(charts, folder / f"{name}.png")
