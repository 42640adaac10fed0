"""Fourier features of positions.

Paper    Jaegle et al. 2021, "Perceiver", arXiv 2103.03206, section 3.2 and appendix
Formula  per axis a with positions p in [-1, 1] and K frequencies f, evenly spaced from 1 to r_a / 2:
         [p_a for all a | sin(pi f p_a), a outer, f inner | cos(pi f p_a), the same]; r_a = size of the axis,
         so that the highest frequency is that of Nyquist
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mapformers.core.errors import require


def grid(shape: Sequence[int], device: torch.device | None = None) -> Tensor:
    """[prod(shape), axes] positions of a grid in raster order, each axis from -1 to 1, both ends included."""
    require(
        len(shape) >= 1 and all(size >= 1 for size in shape),
        f"fourier: shape must hold sizes of 1 or more, got {list(shape)}; give one size for each axis",
    )
    axes = [torch.linspace(-1.0, 1.0, size, dtype=torch.float64, device=device) for size in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)


def fourier_features(positions: Tensor, bands: int, resolution: Sequence[float]) -> Tensor:
    """positions [.., axes] in [-1, 1] to [.., axes (2 bands + 1)]; resolution r of each axis."""
    require(
        positions.shape[-1] == len(resolution),
        f"fourier: resolution must have one entry for each of {positions.shape[-1]} axes, got "
        f"{len(resolution)}; give them all",
    )
    device, dtype = positions.device, positions.dtype
    frequencies = torch.stack(
        [torch.linspace(1.0, r / 2, bands, dtype=dtype, device=device) for r in resolution]
    )  # [axes, bands]
    angles = (math.pi * positions.unsqueeze(-1) * frequencies).flatten(-2)  # [.., axes bands]
    return torch.cat([positions, angles.sin(), angles.cos()], -1)


def fourier_width(axes: int, bands: int) -> int:
    """Features of a position."""
    return axes * (2 * bands + 1)


def sinusoid(positions: Tensor, dim: int) -> Tensor:
    """[.., dim] fixed positions (Vaswani et al. 2017, section 3.5): sines first, then cosines."""
    half = (dim + 1) // 2
    speed = 10000.0 ** -(torch.arange(half, device=positions.device, dtype=torch.float64) / half)
    angle = positions.unsqueeze(-1).double() * speed
    return torch.cat([angle.sin(), angle.cos()], -1)[..., :dim]


class FourierGrid(nn.Module):
    """The features of a whole grid, [prod(shape), width]; made where they are first asked for.

    They are no buffers: a model that is loaded is first built without memory, and what is computed is not
    stored in a checkpoint.
    """

    def __init__(self, shape: Sequence[int], bands: int) -> None:
        super().__init__()
        require(bands >= 1, f"fourier: bands must be 1 or more, got {bands}; use 64")
        self.shape, self.bands = tuple(shape), bands
        self.width = fourier_width(len(self.shape), bands)
        self._made: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def forward(self, like: Tensor) -> Tensor:
        """[prod(shape), width] with the device and type of `like`."""
        key = (like.device, like.dtype)
        if key not in self._made:
            made = fourier_features(grid(self.shape, like.device), self.bands, [float(n) for n in self.shape])
            self._made = {key: made.to(like.dtype)}
        return self._made[key]
