"""One look for all pictures: sizes, colours that differ in grey too, markers, and how they are saved."""

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from mapformers.core.errors import MapformersError, require

ENDINGS = (".svg", ".png", ".pdf")
# Okabe and Ito: people with any colour vision tell these apart. Without the yellow, too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")  # one more than colours, so that pairs come back late
DASHES = ("-", "--", "-.", ":")
FONT = {"font.size": 9, "font.family": "DejaVu Sans", "svg.fonttype": "none", "svg.hashsalt": "mapformers"}


class Look(NamedTuple):
    """Of one line or point: all three differ between neighbours, so that grey prints can be read."""

    colour: str
    marker: str
    dash: str


def looks() -> Iterator[Look]:
    """One after the other, without end."""
    dashes = (dash for dash in cycle(DASHES) for _ in COLOURS)
    return (Look(c, m, d) for c, m, d in zip(cycle(COLOURS), cycle(MARKERS), dashes, strict=False))


def new_figure(width: float = 6.4, height: float = 4.0, columns: int = 1) -> tuple[Any, list[Any]]:
    """A figure of inches and its axes side by side, without pyplot: nothing global is touched.

    Raises MapformersError without matplotlib.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        message = "plot: pictures need the package matplotlib, got none; pip install 'mapformers[viz]'"
        raise MapformersError(message) from None
    with rc_context(FONT):
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = [figure.add_subplot(1, columns, number + 1) for number in range(columns)]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def save(figure: Any, path: Path) -> None:
    """Write a figure as .svg, .png or .pdf, whole or not at all; the same figure gives the same bytes.

    Raises MapformersError for another ending or a folder that cannot be written.
    """
    require(
        path.suffix in ENDINGS,
        f"plot: the file must end in {', '.join(ENDINGS)}, got {path.name}; change the ending",
    )
    from matplotlib import rc_context

    temporary = path.with_name(f".{path.name}.part")
    stamps = {".svg": {"Date": None}, ".png": {"Software": None}, ".pdf": {"CreationDate": None}}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with rc_context(FONT):
            figure.savefig(temporary, format=path.suffix[1:], metadata=stamps[path.suffix])
        temporary.replace(path)
    except OSError as error:
        raise MapformersError(
            f"plot: {path} must be writable, got {error.strerror or error}; choose another file"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
