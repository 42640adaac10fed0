"""The pattern of an attention: who sees whom, as text for the terminal and as a file."""

from pathlib import Path

import torch
from torch import Tensor

from mapformers.core.errors import MapformersError, require

SHADES = " ░▒▓█"
SEEN = 1e-6  # smaller weights are drawn as unseen


def text_picture(weights: Tensor) -> str:
    """Lines of block characters for weights [N, M] (or bool): a row is a query, two characters are a key.

    Shades show the weight relative to the largest of its row; a dot is a key that is not seen.
    """
    weights = _matrix(weights)
    lines = []
    for row in weights.tolist():
        top = max(row)
        lines.append("".join(_cell(weight, top) for weight in row).rstrip())
    return "\n".join(lines)


def save_picture(weights: Tensor, path: Path, title: str = "") -> None:
    """Write weights [N, M] as .svg or .png.

    Raises MapformersError for another ending or without matplotlib.
    """
    require(
        path.suffix in (".svg", ".png"),
        f"show: --output must end in .svg or .png, got {path.name}; change the ending",
    )
    require(
        path.parent.is_dir(), f"show: --output needs an existing folder, got {path.parent}; make it first"
    )
    weights = _matrix(weights)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        message = "show: --output needs the package matplotlib, got none; pip install 'mapformers[viz]'"
        raise MapformersError(message) from None
    figure = Figure(figsize=(5, 5.2), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = weights / weights.amax(-1, keepdim=True).clamp(min=SEEN)
    axes.imshow(shown.masked_fill(weights <= SEEN, float("nan")).numpy(), cmap="viridis_r", vmin=0, vmax=1)
    axes.set_xlabel("key")
    axes.set_ylabel("query")
    axes.set_title(title)
    temporary = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(temporary, format=path.suffix[1:])
        temporary.replace(path)
    except OSError as error:
        raise MapformersError(
            f"show: {path} must be writable, got {error.strerror or error}; choose another --output"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _matrix(weights: Tensor) -> Tensor:
    require(
        weights.dim() == 2,
        f"pattern: weights must be [N, M], got {tuple(weights.shape)}; pick one batch row and head",
    )
    return weights.detach().to("cpu", torch.float32).abs()


def _cell(weight: float, top: float) -> str:
    if weight <= SEEN:
        return "· "
    return SHADES[max(1, min(4, round(4 * (weight / top) ** 0.5)))] * 2
