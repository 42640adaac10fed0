"""Options of the adapters, read from the plain dict of a config: {kind: grid, shape: [28, 28], bands: 32}."""

from __future__ import annotations

import inspect
import math
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from mapformers.core.errors import require, require_known

MAY_BE_ZERO = {"zero": True}  # other whole numbers whose default is above 0 must be so themselves
POSITIONS = ("fourier", "learned", "none")
QUERIES = ("trained", "fourier", "input")


@dataclass(frozen=True)
class TextInput:
    """Tokens: embeddings, and learned positions of up to `length` tokens (0 = none)."""

    vocab_size: int = 256
    length: int = field(default=2048, metadata=MAY_BE_ZERO)
    channels: int = 256


@dataclass(frozen=True)
class GridInput:
    """Values on a grid [B, *shape, channels], or [B, n, channels] in raster order; one axis may be shorter.

    patch       places of the grid taken together, one number for each axis; None = each alone
    project     channels of a linear map of the values; 0 = as they are
    positions   Fourier features beside the values, learned rows of `bands` numbers beside them, or none
    """

    shape: list[int] = field(default_factory=lambda: [28, 28])
    channels: int = 1
    patch: list[int] | None = None
    project: int = 0
    positions: str = "fourier"
    bands: int = 32

    @property
    def places(self) -> list[int]:
        """The grid of what stands in the array: patches, where there are any."""
        return [size // step for size, step in zip(self.shape, self.steps, strict=True)]

    @property
    def steps(self) -> list[int]:
        """Places taken together along each axis."""
        return [1] * len(self.shape) if self.patch is None else self.patch


@dataclass(frozen=True)
class PointsInput:
    """Points [B, n, coordinates + channels], the coordinates in [-1, 1]; highest frequency resolution / 2."""

    coordinates: int = 3
    channels: int = 0
    bands: int = 64
    resolution: float = 1120.0


@dataclass(frozen=True)
class FlowInput:
    """Two frames [B, 2, height, width, 3]: the 3 x 3 neighbourhood of each place in both, projected."""

    shape: list[int] = field(default_factory=lambda: [368, 496])
    project: int = 64
    bands: int = 64


@dataclass(frozen=True)
class MultimodalInput:
    """Several arrays after each other, each filled up to one width by a learned row of its own."""

    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    extra: int = 4  # channels of the learned row of the widest part


@dataclass(frozen=True)
class SeriesInput:
    """A history of `channels` numbers to a future of `outputs`: see models/forecasting.py.

    context, known, horizon   steps of the history, those the decoder reads again, steps ahead
    features                  numbers about the time of each step
    distil                    halve the history between the layers of the encoder
    """

    channels: int = 7
    outputs: int = 7
    context: int = 96
    known: int = 48
    horizon: int = 24
    features: int = field(default=4, metadata=MAY_BE_ZERO)
    distil: bool = True


@dataclass(frozen=True)
class ClassesOutput:
    """One row of logits: from the mean of the latents, or from a trained query (Perceiver IO)."""

    read: str = "mean"
    heads: int = 1


@dataclass(frozen=True)
class ArrayOutput:
    """`channels` numbers for each of `rows` outputs, each read by a query of its own.

    queries   trained rows, Fourier features of a grid `shape`, or the array of the input itself
    width     of trained queries; qk, v: widths of the read, 0 = width of the latents
    residual  add the query to what it reads
    scale     the outputs are multiplied by it
    """

    channels: int = 1
    rows: int = 0
    queries: str = "trained"
    shape: list[int] | None = None
    bands: int = 32
    width: int = 256
    heads: int = 1
    qk: int = 0
    v: int = 0
    residual: bool = False
    scale: float = 1.0


@dataclass(frozen=True)
class MultimodalOutput:
    """Several arrays by name, each with queries of its own."""

    parts: dict[str, dict[str, Any]] = field(default_factory=dict)


INPUTS: dict[str, type] = {
    "text": TextInput,
    "grid": GridInput,
    "points": PointsInput,
    "flow": FlowInput,
    "multimodal": MultimodalInput,
    "series": SeriesInput,
}
OUTPUTS: dict[str, type] = {"classes": ClassesOutput, "array": ArrayOutput, "multimodal": MultimodalOutput}


def input_options(plain: dict[str, Any]) -> Any:
    """The options of an input adapter.

    Raises MapformersError for unknown kinds and keys, and for wrong values.
    """
    options = _options("input", plain, INPUTS)
    if isinstance(options, GridInput):
        _check_grid(options)
    if isinstance(options, MultimodalInput):
        require(bool(options.parts), "input: parts must name at least one adapter, got none; add {audio: ..}")
        for part in options.parts.values():
            input_options(part)
    return options


def output_options(plain: dict[str, Any]) -> Any:
    """The options of an output adapter; errors as for `input_options`."""
    options = _options("output", plain, OUTPUTS)
    if isinstance(options, ClassesOutput):
        require_known("output", "read", options.read, ("mean", "query"))
    if isinstance(options, ArrayOutput):
        require_known("output", "queries", options.queries, QUERIES)
        has_rows = options.queries == "input" or options.shape is not None or options.rows > 0
        require(
            has_rows and (options.queries != "fourier" or options.shape is not None),
            f"output: rows (or shape) must say how many outputs there are, got rows={options.rows} and "
            f"shape={options.shape}; add rows for trained queries, shape for fourier",
        )
    if isinstance(options, MultimodalOutput):
        require(
            bool(options.parts), "output: parts must name at least one adapter, got none; add {audio: ..}"
        )
        for part in options.parts.values():
            output_options(part)
    return options


def rows_of(options: ArrayOutput) -> int:
    """Outputs of an array whose number does not follow from the input."""
    return options.rows or math.prod(options.shape or [0])


def _check_grid(options: GridInput) -> None:
    require_known("input", "positions", options.positions, POSITIONS)
    shape, steps = options.shape, options.steps
    fine = len(shape) == len(steps) and all(s >= 1 and n % s == 0 for n, s in zip(shape, steps, strict=False))
    require(
        bool(shape) and fine,
        f"input: shape must be a multiple of patch along each axis, got {shape} and {options.patch}; change "
        "one of them",
    )


def _options(who: str, plain: dict[str, Any], kinds: dict[str, type]) -> Any:
    require(
        isinstance(plain, dict) and isinstance(plain.get("kind"), str),
        f"{who}: must name its kind, got {plain!r}; write {{kind: {next(iter(kinds))}}}",
    )
    require_known(who, "kind", plain["kind"], kinds)
    kind = kinds[plain["kind"]]
    known = {one.name: one for one in fields(kind)}
    hints = inspect.get_annotations(kind, eval_str=True)
    given = {key: value for key, value in plain.items() if key != "kind"}
    for key, value in given.items():
        require_known(who, f"option of {plain['kind']}", key, known)
        example = _default(known[key])
        fits = value is None or example is None or _fits(value, example)
        require(
            fits and (value is not None or type(None) in getattr(hints[key], "__args__", ())),
            f"{who}: {key} must be of the kind of {example!r}, got {value!r}; change it",
        )
        if isinstance(value, int) and not isinstance(value, bool):
            lowest = 0 if "zero" in known[key].metadata or example == 0 else 1
            require(
                value >= lowest,
                f"{who}: {key} must be {lowest} or more, got {value}; raise it",
            )
    return kind(**given)


def _default(one: Any) -> Any:
    return one.default if one.default is not MISSING else one.default_factory()


def _fits(value: Any, example: Any) -> bool:
    """Whether a value is of the type of the default; a whole number may stand for a float."""
    if isinstance(example, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(example, bool)
    if isinstance(example, float):
        return isinstance(value, int | float)
    if isinstance(example, list):
        return isinstance(value, list) and all(isinstance(one, int) and one >= 1 for one in value)
    return isinstance(value, type(example))
