"""Output adapters: from latents [B, L, dim] to logits or to an array, read by output queries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mapformers.blocks.fourier import FourierGrid
from mapformers.blocks.read import Read, ReadSizes
from mapformers.core.draw import linear, normal
from mapformers.core.errors import require
from mapformers.models.adapters.inputs import SCALE
from mapformers.models.adapters.options import (
    ArrayOutput,
    ClassesOutput,
    MultimodalOutput,
    output_options,
    rows_of,
)


class OutputSite:
    """What an output adapter is made for: width of the latents, of the input array, and the layer norms."""

    def __init__(self, latent: int, array: int, eps: float, labels: int) -> None:
        self.latent, self.array, self.eps, self.labels = latent, array, eps, labels


class Queries(nn.Module):
    """Output queries: trained rows, Fourier features of a grid, or the input's own array."""

    def __init__(self, options: ArrayOutput, site: OutputSite, generator: torch.Generator) -> None:
        super().__init__()
        self.kind = options.queries
        self.rows: nn.Parameter | None = None
        self.grid: FourierGrid | None = None
        self.count = 0
        if self.kind == "input":
            self.width = site.array
        elif self.kind == "fourier":
            assert options.shape is not None
            self.grid = FourierGrid(options.shape, options.bands)
            self.width, self.count = self.grid.width, rows_of(options)
        else:
            self.width, self.count = options.width, rows_of(options)
            self.rows = nn.Parameter(normal((self.count, self.width), generator, SCALE))

    def forward(self, latents: Tensor, array: Tensor | None, rows: Tensor | None) -> Tensor:
        """[B, n, width] queries of the outputs `rows` [n]; None = of all."""
        if self.kind == "input":
            require(
                array is not None, "output: queries of the input need its array, got none; pass the input"
            )
            assert array is not None
            return array if rows is None else array[:, rows]
        table = self.rows if self.grid is None else self.grid(latents)
        assert table is not None
        require(
            rows is None or (int(rows.min()) >= 0 and int(rows.max()) < self.count),
            f"output: rows must lie in [0, {self.count}), got others; see rows or shape of the output",
        )
        table = table if rows is None else table[rows]
        return table.to(latents.dtype).expand(latents.shape[0], -1, -1)


class Classes(nn.Module):
    """[B, labels] logits."""

    def __init__(self, options: ClassesOutput, site: OutputSite, generator: torch.Generator) -> None:
        super().__init__()
        self.query: nn.Parameter | None = None
        self.read: Read | None = None
        if options.read == "query":
            self.query = nn.Parameter(normal((1, site.latent), generator, SCALE))
            sizes = ReadSizes(site.latent, site.latent, options.heads, eps=site.eps)
            self.read = Read(sizes, generator)
        self.classify = linear(site.latent, site.labels, generator, bias=True)

    def forward(self, latents: Tensor, array: Tensor | None, rows: Tensor | None = None) -> Tensor:
        """[B, labels]."""
        if self.read is None or self.query is None:
            return self.classify(latents.mean(1))
        query = self.query.to(latents.dtype).expand(latents.shape[0], -1, -1)
        return self.classify(self.read(query, latents)).squeeze(1)


class Array(nn.Module):
    """[B, n, channels], any outputs, in any portions: each depends on its own query alone."""

    def __init__(self, options: ArrayOutput, site: OutputSite, generator: torch.Generator) -> None:
        super().__init__()
        self.queries = Queries(options, site, generator)
        sizes = ReadSizes(
            self.queries.width,
            site.latent,
            options.heads,
            options.qk or site.latent,
            options.v or options.qk or site.latent,
            eps=site.eps,
        )
        self.read = Read(sizes, generator, residual=options.residual)
        self.project = linear(self.queries.width, options.channels, generator, bias=True)
        self.scale = options.scale

    def forward(self, latents: Tensor, array: Tensor | None, rows: Tensor | None = None) -> Tensor:
        """The outputs `rows` [n] of all, None = all of them: [B, n, channels]."""
        return self.project(self.read(self.queries(latents, array, rows), latents)) * self.scale


class Multimodal(nn.Module):
    """Arrays by name."""

    def __init__(self, options: MultimodalOutput, site: OutputSite, generator: torch.Generator) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(
            {name: make_output(one, site, generator) for name, one in options.parts.items()}
        )

    def forward(self, latents: Tensor, array: Tensor | None, rows: Any = None) -> dict[str, Tensor]:
        """The outputs of each part; `rows` by name, a part without an entry gives all of its rows."""
        rows = rows or {}
        return {name: part(latents, array, rows.get(name)) for name, part in self.parts.items()}


ADAPTERS: dict[type, Any] = {ClassesOutput: Classes, ArrayOutput: Array, MultimodalOutput: Multimodal}


def make_output(plain: dict[str, Any], site: OutputSite, generator: torch.Generator) -> Any:
    """The output adapter of a config's dict. Raises MapformersError for what it cannot be."""
    options = output_options(plain)
    return ADAPTERS[type(options)](options, site, generator)
