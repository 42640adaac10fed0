"""Draw docs/pictures from benchmarks/results: one picture for the newest result of each kind with a chart.

python tools/curves.py FOLDER

A result's `chart` has x and y (the labels), lines (name to points) and, where wanted, log ("x", or "both"
axes logarithmic) and ylim.
"""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
DATE = len("2026-01-01-")


def newest_charts() -> dict[str, dict[str, Any]]:
    """Charts by the name of their result; files begin with their date."""
    charts = {}
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if "chart" in found:
            charts[path.stem[DATE:]] = found["chart"]
    return charts


def draw(chart: dict[str, Any], path: Path) -> None:
    """One set of axes, a line for each name."""
    figure = Figure(figsize=(6.4, 4.0), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, points in chart["lines"].items():
        xs, ys = zip(*points, strict=True)
        dashed = name.startswith(("m^", "chance"))
        axes.plot(xs, ys, linestyle="--" if dashed else "-", marker="" if dashed else "o", ms=4, label=name)
    if chart.get("log", "") in ("x", "both"):
        axes.set_xscale("log", base=2)
    if chart.get("log", "") == "both":
        axes.set_yscale("log")
    if "ylim" in chart:
        axes.set_ylim(*chart["ylim"])
    axes.set_xlabel(chart["x"])
    axes.set_ylabel(chart["y"])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, chart in newest_charts().items():
        draw(chart, folder / f"{name}.png")
