"""Draw docs/pictures from benchmarks/results: one picture for the newest result of each kind with a chart.

python tools/curves.py FOLDER

A result has `charts`, drawn side by side, each with x and y (labels), lines (name to points) and, where
wanted, log: "x", or "both" axes logarithmic.
"""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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
    """Axes side by side, in each a line for each name."""
    figure = Figure(figsize=(0.6 + 5.2 * len(charts), 4.0), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left = None
    for number, chart in enumerate(charts):
        left = axes = figure.add_subplot(1, len(charts), number + 1, sharey=left)
        for name, points in chart["lines"].items():
            xs, ys = zip(*points, strict=True)
            dashed = name.startswith("m^")
            axes.plot(xs, ys, "--" if dashed else "-", marker="" if dashed else "o", ms=4, label=name)
        if chart.get("log") in ("x", "both"):
            axes.set_xscale("log", base=2)
        if chart.get("log") == "both":
            axes.set_yscale("log")
        axes.set_xlabel(chart["x"])
        axes.set_ylabel(chart["y"])
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, charts in newest_charts().items():
        draw(charts, folder / f"{name}.png")
