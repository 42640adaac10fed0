"""Input adapters: from what the user has to an array [B, M, channels] with its positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mapformers.blocks.fourier import FourierGrid, fourier_features, fourier_width
from mapformers.core.draw import linear, normal
from mapformers.core.errors import MapformersError, require
from mapformers.models.adapters.options import (
    FlowInput,
    GridInput,
    MultimodalInput,
    PointsInput,
    TextInput,
    input_options,
)

SCALE = 0.02  # standard deviation of learned rows
Real = Tensor | None


class InputAdapter(nn.Module):
    """forward(inputs, is_real) -> (array [B, M, channels], is_real [B, M] or None)."""

    channels: int
    takes = "inputs"  # the argument of a model that it reads


class Text(InputAdapter):
    """Token ids [B, n]: embeddings and learned positions."""

    takes = "input_ids"

    def __init__(self, options: TextInput, generator: torch.Generator) -> None:
        super().__init__()
        self.channels, self.length = options.channels, options.length
        weight = normal((options.vocab_size, options.channels), generator, SCALE)
        self.embed = nn.Embedding(options.vocab_size, options.channels, _weight=weight)
        rows = normal((options.length, options.channels), generator, SCALE)
        self.positions = nn.Parameter(rows) if options.length else None

    def forward(self, inputs: Tensor, is_real: Real = None) -> tuple[Tensor, Real]:
        """Raises MapformersError for ids and lengths beyond the tables."""
        n = inputs.shape[1]
        require(
            self.positions is None or n <= self.length,
            f"input: a text must have at most {self.length} tokens, the length of its table of positions, "
            f"got {n}; cut it or raise length",
        )
        try:
            x = self.embed(inputs)
        except IndexError as error:  # the CPU says so; on a GPU torch aborts the kernel itself
            raise MapformersError(
                f"input: ids must lie in [0, {self.embed.num_embeddings}), got {int(inputs.min())} to "
                f"{int(inputs.max())}; use the tokenizer the model was made for"
            ) from error
        return x if self.positions is None else x + self.positions[:n], is_real


class Grid(InputAdapter):
    """Values on a grid, in raster order, with the features of their place."""

    def __init__(self, options: GridInput, generator: torch.Generator) -> None:
        super().__init__()
        self.options = options
        places = math.prod(options.places)
        width = options.channels * math.prod(options.steps)
        self.project = linear(width, options.project, generator, bias=True) if options.project else None
        width = options.project or width
        self.places = FourierGrid(options.places, options.bands) if options.positions == "fourier" else None
        learned = options.positions == "learned"
        self.rows = nn.Parameter(normal((places, options.bands), generator, SCALE)) if learned else None
        self.channels = width + (self.places.width if self.places else options.bands if learned else 0)

    def forward(self, inputs: Tensor, is_real: Real = None) -> tuple[Tensor, Real]:
        """inputs [B, *shape, channels] or [B, n, channels]; n below the grid only where it has one axis."""
        options = self.options
        x, is_real = _flat(inputs, is_real, options)
        x, is_real = _patches(x, is_real, options)
        x = x if self.project is None else self.project(x)
        features = self.places(x) if self.places is not None else self.rows
        if features is not None:
            features = features[: x.shape[1]].to(x.dtype)
            x = torch.cat([x, features.expand(x.shape[0], -1, -1)], -1)
        return x, is_real


class Points(InputAdapter):
    """Points given by coordinates, which need no order."""

    def __init__(self, options: PointsInput, generator: torch.Generator) -> None:
        super().__init__()
        self.options = options
        self.channels = options.channels + fourier_width(options.coordinates, options.bands)

    def forward(self, inputs: Tensor, is_real: Real = None) -> tuple[Tensor, Real]:
        """inputs [B, n, coordinates + channels]."""
        options = self.options
        wanted = options.coordinates + options.channels
        require(
            inputs.dim() == 3 and inputs.shape[-1] == wanted,
            f"input: points must have shape [batch, points, {wanted}], got {tuple(inputs.shape)}; see "
            "coordinates and channels",
        )
        place, values = inputs.split([options.coordinates, options.channels], -1)
        features = fourier_features(place, options.bands, [options.resolution] * options.coordinates)
        return torch.cat([values, features], -1), is_real


class Flow(InputAdapter):
    """Two frames as one array over their places (Jaegle et al. 2022, arXiv 2107.14795, appendix H)."""

    def __init__(self, options: FlowInput, generator: torch.Generator) -> None:
        super().__init__()
        require(
            len(options.shape) == 2,
            f"input: shape of flow must be [height, width], got {options.shape}; give two sizes",
        )
        self.shape = options.shape
        self.project = linear(2 * 3 * 9, options.project, generator, bias=True)
        self.places = FourierGrid(options.shape, options.bands)
        self.channels = options.project + self.places.width

    def forward(self, inputs: Tensor, is_real: Real = None) -> tuple[Tensor, Real]:
        """inputs [B, 2, height, width, 3]."""
        require(
            inputs.dim() == 5 and list(inputs.shape[1:]) == [2, *self.shape, 3],
            f"input: two frames must have shape [batch, 2, {self.shape[0]}, {self.shape[1]}, 3], got "
            f"{tuple(inputs.shape)}; resize them",
        )
        frames = inputs.permute(0, 1, 4, 2, 3).flatten(0, 1)  # [2 B, 3, H, W]
        near = F.unfold(frames, 3, padding=1).mT  # [2 B, H W, 27]
        x = near.unflatten(0, (-1, 2)).transpose(1, 2).flatten(2)  # [B, H W, 54]
        x = self.project(x)
        return torch.cat([x, self.places(x).expand(x.shape[0], -1, -1)], -1), is_real


class Multimodal(InputAdapter):
    """Arrays of several adapters after each other, of one width."""

    def __init__(self, options: MultimodalInput, generator: torch.Generator) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: make_input(one, generator) for name, one in options.parts.items()})
        self.channels = max(part.channels for part in self.parts.values()) + options.extra
        self.rows = nn.ParameterDict(
            {
                name: nn.Parameter(normal((self.channels - part.channels,), generator, SCALE))
                for name, part in self.parts.items()
            }
        )

    def forward(self, inputs: dict[str, Tensor], is_real: Any = None) -> tuple[Tensor, Real]:
        """inputs and is_real by the names of the parts."""
        require(
            isinstance(inputs, dict) and set(inputs) == set(self.parts),
            f"input: must hold {', '.join(self.parts)}, got "
            f"{', '.join(inputs) if isinstance(inputs, dict) else type(inputs).__name__}; pass a dict",
        )
        arrays, real = [], []
        for name, part in self.parts.items():
            x, known = part(inputs[name], None if is_real is None else is_real.get(name))
            row = self.rows[name].to(x.dtype).expand(*x.shape[:2], -1)
            arrays.append(torch.cat([x, row], -1))
            real.append(torch.ones_like(x[..., 0], dtype=torch.bool) if known is None else known)
        return torch.cat(arrays, 1), None if is_real is None else torch.cat(real, 1)


ADAPTERS: dict[type, Any] = {
    TextInput: Text,
    GridInput: Grid,
    PointsInput: Points,
    FlowInput: Flow,
    MultimodalInput: Multimodal,
}


def make_input(plain: dict[str, Any], generator: torch.Generator) -> Any:
    """The input adapter of a config's dict. Raises MapformersError for what it cannot be."""
    options = input_options(plain)
    require(
        type(options) in ADAPTERS,
        f"input: {plain['kind']} has its own embedding, got it as an adapter; use MapformerForForecasting",
    )
    return ADAPTERS[type(options)](options, generator)


def _flat(x: Tensor, is_real: Real, options: GridInput) -> tuple[Tensor, Real]:
    """[B, n, channels] in raster order."""
    size, channels = math.prod(options.shape), options.channels
    if len(options.shape) > 1 and list(x.shape[1:]) == [*options.shape, channels]:
        x = x.flatten(1, -2)
    axes = ", ".join(map(str, options.shape))
    require(
        x.dim() == 3 and x.shape[-1] == channels and (x.shape[1] == size or len(options.shape) == 1),
        f"input: must have shape [batch, {axes}, {channels}], flat or not, got {tuple(x.shape)}; resize it",
    )
    require(
        x.shape[1] <= size,
        f"input: must have at most {size} places, got {x.shape[1]}; cut it or raise shape",
    )
    return x, is_real


def _patches(x: Tensor, is_real: Real, options: GridInput) -> tuple[Tensor, Real]:
    """Places taken together: [B, patches, values of a patch]."""
    if options.patch is None:
        return x, is_real
    if is_real is not None:
        x = x * is_real.unsqueeze(-1)  # what stands in padding must not reach a patch
    if len(options.shape) == 1:
        (step,) = options.steps
        missing = -x.shape[1] % step
        x = F.pad(x, (0, 0, 0, missing))
        if is_real is not None:
            is_real = F.pad(is_real, (0, missing)).unflatten(1, (-1, step)).any(-1)
        return x.unflatten(1, (-1, step)).flatten(2), is_real
    require(
        is_real is None,
        "input: patches of a grid of several axes take no padding, got a mask; resize the images",
    )
    return _grid_patches(x, options.shape, options.steps), None


def _grid_patches(x: Tensor, shape: Sequence[int], steps: Sequence[int]) -> Tensor:
    """[B, prod(shape), C] to [B, prod(shape / steps), prod(steps) C]."""
    split = [size for n, step in zip(shape, steps, strict=True) for size in (n // step, step)]
    x = x.unflatten(1, split)  # [B, n_1, s_1, n_2, s_2, .., C]
    axes = len(shape)
    outer, inner = [1 + 2 * i for i in range(axes)], [2 + 2 * i for i in range(axes)]
    x = x.permute(0, *outer, *inner, 1 + 2 * axes)
    return x.flatten(1 + axes).flatten(1, axes)
