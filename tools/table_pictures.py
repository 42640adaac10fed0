"""Every table of results as a picture for papers, and the curves of the benchmark.

python tools/table_pictures.py FOLDER            .svg
python tools/table_pictures.py FOLDER --png      .svg and .png
"""

import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from readme_results import PAGES, Table, newest

from mapformers.report.style import looks, new_figure, save
from mapformers.study.table import save_plot

CELL = 40  # most characters of a cell before it is broken
COMPARED = ("compare-mqar", "compare-stdlib")
SHOWN = ("full", "band", "routing", "reformer", "linear", "performer", "moba", "linformer", "nystrom")


def table_figure(one: Table) -> Any:
    """A table as a figure: its title above, its source below."""
    rows = [[_plain(name), *map(_plain, cells)] for name, cells in one.rows.items()]
    widths = [
        max(len(line) for text in column for line in text.split("\n"))
        for column in zip([_plain(h) for h in one.head], *rows, strict=True)
    ]
    lines = [max(text.count("\n") + 1 for text in row) for row in rows]
    width, height = max(5.0, 0.078 * sum(widths) + 0.22 * len(widths)), 1.1 + 0.2 * (sum(lines) + 1)
    figure, (axes,) = new_figure(width, height)
    axes.axis("off")
    drawn = axes.table(
        cellText=rows,
        colLabels=[_plain(h) for h in one.head],
        loc="center",
        cellLoc="right",
        edges="horizontal",
        colWidths=[w / sum(widths) for w in widths],
    )
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(8)
    for (row, column), cell in drawn.get_celld().items():
        cell.set_height((lines[row - 1] if row else 1) / (sum(lines) + 1))
        cell.set_linewidth(0.4)
        if column == 0:
            cell.set_text_props(ha="left")
        if row == 0:
            cell.set_text_props(weight="bold")
    most = int(width / 0.075)
    axes.set_title("\n".join(textwrap.wrap(_plain(one.title, 10_000), most)), fontsize=8.5, loc="left")
    figure.supxlabel(
        "\n".join(textwrap.wrap(_plain(one.source, 10_000), most)), fontsize=6.5, x=0.01, ha="left"
    )
    return figure


def bench_figure() -> Any:
    """Time and memory of a pass by length, both axes logarithmic."""
    found = newest("bench")
    figure, axes = new_figure(10.5, 4.2, 2)
    for name, look in zip(SHOWN, looks(), strict=False):
        rows = sorted((int(n), row) for n, row in found["points"][name].items() if "core" in row)
        xs = [n for n, _ in rows]
        for one, ys in zip(
            axes, ([1000 * r["core"]["min"] for _, r in rows], [r["peak_mb"] for _, r in rows]), strict=True
        ):
            one.plot(xs, ys, look.dash, color=look.colour, marker=look.marker, ms=4, label=name)
    for one, label in zip(axes, ("milliseconds, forward and backward", "MB added by a pass"), strict=True):
        one.set_xscale("log", base=2)
        one.set_yscale("log")
        one.set_xlabel("tokens")
        one.set_ylabel(label)
    axes[1].legend(fontsize=7, frameon=False)
    return figure


def _plain(text: str, most: int = CELL) -> str:
    """Without Markdown; long cells are broken."""
    bare = re.sub(r"<[^>]*>|`|\*\*", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text))
    return "\n".join(textwrap.wrap(bare, most)) or bare


def draw_all(folder: Path, endings: tuple[str, ...]) -> list[str]:
    """Write all pictures into a folder; returns their names."""
    figures: dict[str, Any] = {}
    for one in (one for made in PAGES.values() for one in made()):
        same = sum(name.startswith(one.name) for name in figures)
        figures[f"{one.name}-{same + 1}" if same else one.name] = table_figure(one)
    figures["bench-curves"] = bench_figure()
    for name, figure in figures.items():
        for ending in endings:
            save(figure, folder / f"{name}{ending}")
    for name in COMPARED:
        for ending in endings:
            save_plot(newest(name), folder / f"{name}{ending}")
    return [*figures, *COMPARED]


if __name__ == "__main__":
    drawn = draw_all(Path(sys.argv[1]), (".svg", ".png") if "--png" in sys.argv[2:] else (".svg",))
    print(f"{len(drawn)} pictures in {sys.argv[1]}")
