"""The attention of ETC: two streams, four pieces, one softmax for each stream, relative labels for pairs.

The pieces are named by who looks at whom: l2l, l2g, g2g, g2l, with l the long stream and g the global one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from mapformers.core.attended import Attended, merge
from mapformers.core.carry import Carry
from mapformers.core.draw import linear, normal
from mapformers.core.errors import require, require_known
from mapformers.core.plans import Dense, Windows
from mapformers.core.scope import Scope
from mapformers.core.score import Pairs, ScoreTerm
from mapformers.heads.merging import Concatenate, ConcatenateConfig
from mapformers.heads.projection import Sizes
from mapformers.kernels.dense import dense_attend
from mapformers.kernels.run import window_attend
from mapformers.kernels.softmax import at_least_float32, default_scale

Projections = Literal["shared", "by_side", "separate"]
PROJECTIONS: tuple[Projections, ...] = ("shared", "by_side", "separate")
PIECES = ("l2l", "l2g", "g2g", "g2l")


@dataclass(frozen=True)
class GlobalLocal:
    """Who sees whom, and the labels of pairs: distances up to `max_distance`, then `labels` more."""

    radius: int
    max_distance: int
    labels: int
    projections: Projections

    @property
    def vocabulary(self) -> int:
        """How many labels there are."""
        return self.plain + self.labels

    @property
    def plain(self) -> int:
        """The label of a pair of the two streams that nobody labelled: the first one after the distances."""
        return 2 * self.max_distance + 1

    def of_distance(self, distance: Tensor) -> Tensor:
        """The label of a distance, query minus key."""
        return distance.clamp(-self.max_distance, self.max_distance) + self.max_distance


class GlobalLocalAttention(nn.Module):
    """Long x [B, N, dim] and global rows [B, L, dim] attend to both, each row within one softmax."""

    def __init__(self, config: GlobalLocal, sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__()
        self.config, self.head_dim = config, sizes.head_dim
        wide = sizes.heads * sizes.head_dim

        def layers(names: list[str]) -> nn.ModuleDict:
            return nn.ModuleDict({name: linear(sizes.dim, wide, generator) for name in dict.fromkeys(names)})

        self.query = layers([self._query_name(side) for side in "lg"])
        self.key, self.value = (layers([self._key_name(piece) for piece in PIECES]) for _ in range(2))
        self.relative = nn.ModuleDict({side: Relative(config.vocabulary, sizes, generator) for side in "lg"})
        self.merge = nn.ModuleDict(
            {side: Concatenate(ConcatenateConfig(), sizes, generator) for side in "lg"}
        )

    def forward(self, x: Tensor, stream: Tensor, carry: Carry) -> tuple[Tensor, Tensor]:
        """What both streams read, [B, N, dim] and [B, L, dim].

        carry.labels may hold "l2g" [B or 1, N, L], "g2l" [B or 1, L, N] and "g2g" [B or 1, L, L], int;
        where a label is negative, the query does not see the key.
        """
        batch, n, _ = x.shape
        for name in carry.labels:
            require_known("etc", "labels", name, PIECES[1:])
        scope = Scope.of(False, carry.key_is_real, positions=carry.positions)
        scope.check(batch, n, n)
        # The terms are told indices, and look up the positions themselves.
        padded = Scope(key_is_real=carry.key_is_real)
        q, table = self._query("l", x)
        near = ByDistance(table, scope.query_positions(n, x.device), self.config)
        windows = Windows(before=self.config.radius + 1, after=self.config.radius)
        long = merge(
            [
                window_attend(windows, q, *self._keys("l2l", x), padded, near),
                self._piece("l2g", (q, table), stream, carry, Scope()),
            ]
        )
        asked = self._query("g", stream)
        short = merge(
            [
                self._piece("g2g", asked, stream, carry, Scope()),
                self._piece("g2l", asked, x, carry, padded),
            ]
        )
        return self.merge["l"](long.output), self.merge["g"](short.output)

    def _query_name(self, side: str) -> str:
        return "all" if self.config.projections == "shared" else side

    def _key_name(self, piece: str) -> str:
        """Which keys and values a piece takes."""
        return {"shared": "all", "by_side": piece[0], "separate": piece}[self.config.projections]

    def _query(self, side: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [B, H, N, D] and what every label adds to their scores, [B, H, N, labels]."""
        q = self._split(self.query[self._query_name(side)](x))
        return q, self.relative[side](q)

    def _keys(self, piece: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a piece, [B, H, M, D]."""
        name = self._key_name(piece)
        return self._split(self.key[name](x)), self._split(self.value[name](x))

    def _piece(
        self, piece: str, asked: tuple[Tensor, Tensor], context: Tensor, carry: Carry, scope: Scope
    ) -> Attended:
        """One of the pieces without a window, before the merge; asked: queries and their table."""
        q, table = asked
        given = carry.labels.get(piece)
        labels = self._labels(piece, given, (q.shape[0], q.shape[2], context.shape[1]), q.device)
        seen = Dense() if given is None else Dense(allowed=(labels >= 0)[:, None])
        return dense_attend(seen, q, *self._keys(piece, context), scope, Listed(table, labels))

    def _labels(
        self, piece: str, given: Tensor | None, sizes: tuple[int, int, int], device: torch.device
    ) -> Tensor:
        """[B or 1, queries, keys] the labels of a piece; sizes: B, queries, keys."""
        batch, n, m = sizes
        if given is None and piece == "g2g":
            index = torch.arange(n, device=device)
            return self.config.of_distance(index[:, None] - index)[None]
        if given is None:
            return torch.full((1, 1, 1), self.config.plain, device=device).expand(1, n, m)
        require(
            given.dtype in (torch.int32, torch.int64) and given.shape in (sizes, (1, n, m)),
            f"etc: labels {piece!r} must be int of shape {(batch, n, m)}, got {given.dtype} of "
            f"{tuple(given.shape)}; one label for every query and key",
        )
        require(
            int(given.max()) < self.config.vocabulary,
            f"etc: labels {piece!r} must be below {self.config.vocabulary}, got {int(given.max())}; "
            "choose more labels",
        )
        return given

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h d) -> b h n d", d=self.head_dim)


class Relative(nn.Module):
    """For every head and label a key a and a bias b: (q . a + b) / sqrt(D)."""

    def __init__(self, vocabulary: int, sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__()
        shape = (sizes.heads, vocabulary, sizes.head_dim)
        self.keys = nn.Parameter(normal(shape, generator, sizes.head_dim**-0.5))
        self.bias = nn.Parameter(torch.zeros(shape[:2]))

    def forward(self, q: Tensor) -> Tensor:
        """[B, H, N, labels] for queries [B, H, N, D]."""
        content = at_least_float32(q @ self.keys.to(q.dtype).transpose(-1, -2))
        return (content + self.bias[:, None].to(content.dtype)) * default_scale(q.shape[-1])


class Labelled(ScoreTerm):
    """What the label of a pair adds, read from a table [B, H, N, labels] of every query.

    The pairs must hold the index of query and key, not their positions.
    """

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def label(self, pairs: Pairs) -> Tensor:
        """The labels of these pairs."""
        raise NotImplementedError(f"{type(self).__name__} must define label(pairs)")

    def tile(self, pairs: Pairs) -> Tensor:
        """One entry of the table for every pair."""
        return self.table[pairs.batch, pairs.head, pairs.query, self.label(pairs)]


class ByDistance(Labelled):
    """Labels by the distance of positions [B or 1, N]."""

    def __init__(self, table: Tensor, positions: Tensor, config: GlobalLocal) -> None:
        super().__init__(table)
        self.positions, self.config = positions, config

    def label(self, pairs: Pairs) -> Tensor:
        """Clipped distances."""
        row = pairs.batch if self.positions.shape[0] > 1 else torch.zeros_like(pairs.batch)
        return self.config.of_distance(self.positions[row, pairs.query] - self.positions[row, pairs.key])


class Listed(Labelled):
    """Labels [B or 1, N, M] as they are listed; what is negative is hidden elsewhere."""

    def __init__(self, table: Tensor, labels: Tensor) -> None:
        super().__init__(table)
        self.labels = labels

    def label(self, pairs: Pairs) -> Tensor:
        """As listed."""
        row = pairs.batch if self.labels.shape[0] > 1 else torch.zeros_like(pairs.batch)
        return self.labels[row, pairs.query, pairs.key].long().clamp(min=0)
