"""Project port: how x becomes queries, keys and values."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from mapformers.core.card import Card, option, options_of
from mapformers.core.draw import linear
from mapformers.core.errors import require


@dataclass(frozen=True)
class Sizes:
    """Sizes of a multi-head layer: x [B, N, dim], H heads of head_dim."""

    dim: int
    heads: int
    head_dim: int


@dataclass(frozen=True)
class MultiHeadConfig:
    """One key/value head for each query head; no options."""


@dataclass(frozen=True)
class GroupedQueryConfig:
    """Options of grouped_query."""

    kv_heads: int = option(1, "key/value heads; each serves heads / kv_heads query heads")

    def __post_init__(self) -> None:
        require(
            self.kv_heads >= 1,
            f"grouped_query: kv_heads must be 1 or more, got {self.kv_heads}; use 1, 2 or 4",
        )


class Projection(nn.Module):
    """Base of the project port: q [B, H, N, D] of x, k and v [B, G, M, D] of the context."""

    card: ClassVar[Card]
    Config: ClassVar[type]
    kv_heads: int
    has_second: ClassVar[bool] = False  # a second set of q, k, v for the rows that the mechanism marks
    takes_rotary: ClassVar[bool] = True

    @classmethod
    def head_dim_of(cls, config: Any) -> int | None:
        """Size of the heads where the projection fixes it; None = as the layer says."""
        return None

    @property
    def key_dim(self) -> int | None:
        """Size of a query and a key where it is not that of a value."""
        return None

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, N, dim] and context [B, M, dim] to q, k, v."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(x, context)")

    def second(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The second set, where `has_second`."""
        raise NotImplementedError(f"{type(self).__name__} must define second(x, context)")


class GroupedQuery(Projection):
    """Fewer key/value heads than query heads."""

    Config = GroupedQueryConfig
    card = Card(
        name="grouped_query",
        kind="project",
        family="improved multi-head",
        paper="Ainslie et al. 2023, arXiv 2305.13245",
        formula="head h reads key/value head h // (heads / kv_heads)",
        cost="keys and values: heads / kv_heads times less memory and projection",
        summary="several query heads share a key/value head",
        options=options_of(GroupedQueryConfig),
    )

    def __init__(self, config: GroupedQueryConfig, sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__()
        self.kv_heads = config.kv_heads
        require(
            sizes.heads % self.kv_heads == 0,
            f"grouped_query: kv_heads must divide heads={sizes.heads}, got {self.kv_heads}; choose a divisor",
        )
        self.head_dim = sizes.head_dim
        self.query = linear(sizes.dim, sizes.heads * sizes.head_dim, generator)
        self.key = linear(sizes.dim, self.kv_heads * sizes.head_dim, generator)
        self.value = linear(sizes.dim, self.kv_heads * sizes.head_dim, generator)

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Linear maps, split into heads."""
        q, k, v = self.query(x), self.key(context), self.value(context)
        return self._split(q), self._split(k), self._split(v)

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h d) -> b h n d", d=self.head_dim)


@dataclass(frozen=True)
class MultiQueryConfig:
    """No options."""


class MultiQuery(GroupedQuery):
    """One key/value head for all query heads."""

    Config = MultiQueryConfig  # type: ignore[assignment]
    card = Card(
        name="multi_query",
        kind="project",
        family="improved multi-head",
        paper="Shazeer 2019, arXiv 1911.02150",
        formula="q = x W_q in H heads, k = x W_k and v = x W_v in one",
        cost="keys and values: H times less memory and projection",
        summary="all query heads share one key/value head",
        options=options_of(MultiQueryConfig),
    )

    def __init__(self, config: MultiQueryConfig, sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__(GroupedQueryConfig(kv_heads=1), sizes, generator)


@dataclass(frozen=True)
class HeadSizeConfig:
    """Options of head_size."""

    size: int = option(64, "numbers of a query, key and value, whatever dim and heads are")

    def __post_init__(self) -> None:
        require(self.size >= 1, f"head_size: size must be 1 or more, got {self.size}; use 64 for example")


class MultiHead(GroupedQuery):
    """The plain form: as many key/value heads as query heads."""

    Config = MultiHeadConfig  # type: ignore[assignment]
    card = Card(
        name="multi_head",
        kind="project",
        family="improved multi-head",
        paper="Vaswani et al. 2017, arXiv 1706.03762, section 3.2.2",
        formula="q = x W_q, k = x W_k, v = x W_v, split into heads",
        cost="time O(N dim^2)",
        summary="every query head has its own key/value head",
        options=options_of(MultiHeadConfig),
    )

    def __init__(self, config: MultiHeadConfig, sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__(GroupedQueryConfig(kv_heads=sizes.heads), sizes, generator)


class HeadSize(MultiHead):
    """Heads of any size: as large as the sequence, a head reaches every matrix of weights."""

    Config = HeadSizeConfig  # type: ignore[assignment]
    card = Card(
        name="head_size",
        kind="project",
        family="improved multi-head",
        paper="Bhojanapalli et al. 2020, arXiv 2002.07028",
        formula="q, k, v of H heads of `size`, merged from H size to dim",
        cost="parameters 4 dim H size",
        summary="heads of a size of their own, as head_dim= of the layer",
        options=options_of(HeadSizeConfig),
    )

    def __init__(self, config: HeadSizeConfig, sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__(MultiHeadConfig(), sizes, generator)

    @classmethod
    def head_dim_of(cls, config: HeadSizeConfig) -> int | None:
        """As the config says."""
        return config.size
