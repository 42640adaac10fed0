"""Random tensors out of a generator that is passed in; the global random state is never touched."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def normal(shape: Sequence[int], generator: torch.Generator, std: float = 1.0) -> Tensor:
    """Gaussian, mean 0. On the meta device (sizes without memory) nothing is drawn."""
    if torch.get_default_device().type == "meta":
        return torch.empty(tuple(shape), device="meta")
    return torch.randn(tuple(shape), generator=generator, device=generator.device) * std


def uniform(shape: Sequence[int], generator: torch.Generator, bound: float) -> Tensor:
    """Uniform in [-bound, bound). On the meta device nothing is drawn."""
    if torch.get_default_device().type == "meta":
        return torch.empty(tuple(shape), device="meta")
    return (torch.rand(tuple(shape), generator=generator, device=generator.device) * 2 - 1) * bound


def linear(
    size_in: int, size_out: int, generator: torch.Generator, bias: bool = False, gain: float = 1.0
) -> nn.Linear:
    """nn.Linear with weights of standard deviation gain / sqrt(size_in) and zero bias."""
    # Made on meta, where nothing is drawn from the global state.
    layer = nn.Linear(size_in, size_out, bias=bias, device="meta")
    layer.weight = nn.Parameter(normal((size_out, size_in), generator, gain * size_in**-0.5))
    if bias:
        layer.bias = nn.Parameter(torch.zeros(size_out))
    return layer
