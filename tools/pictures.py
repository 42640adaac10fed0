"""Draw docs/pictures: the pattern of every mechanism in the catalogue, on one sheet.

python tools/pictures.py FOLDER
"""

import math
import sys
import textwrap
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

import mapformers as mf
from mapformers.core.card import Card
from mapformers.report.samples import sample_weights, small_options

TOKENS = 48
COLUMNS = 3
UNSEEN = 1e-6


def weights_of(card: Card) -> tuple[Tensor, str]:
    """[N, M] the size of the weights on random tokens, each row relative to its largest; and a title."""
    options = small_options(card)
    weights = sample_weights(card, options, TOKENS).abs()
    weights = weights / weights.amax(-1, keepdim=True).clamp(min=UNSEEN)
    said = ", ".join(f"{name}={value}" for name, value in options.items())
    return weights, card.name + (f"({said})" if said else "") + (
        "" if "causal" in card.supports else "  not causal"
    )


def sheet(path: Path) -> None:
    """All patterns in the order of the catalogue."""
    cards = [card for card in mf.catalog() if card.kind == "mechanism"]
    rows = math.ceil(len(cards) / COLUMNS)
    figure = Figure(figsize=(3 * COLUMNS, 3.3 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for number, card in enumerate(cards):
        weights, title = weights_of(card)
        axes = figure.add_subplot(rows, COLUMNS, number + 1)
        shown = weights.masked_fill(weights <= UNSEEN, float("nan")).numpy()
        axes.imshow(shown, cmap="viridis_r", vmin=0, vmax=1)
        axes.set_title(textwrap.fill(title, 44), fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("key", fontsize=8)
        axes.set_ylabel("query", fontsize=8)
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    sheet(folder / "patterns.png")
