"""What may be seen at all in one attention call, before any mechanism narrows it down."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mapformers.core.errors import require


@dataclass(frozen=True)
class Scope:
    """Causality, padding, packed documents and true positions of one call. True always means "keep".

    causal         a query sees only keys whose index is at most its own (`query_start` + its row)
    key_is_real    [B, M] bool, False = padding; None = all real
    segments       [B, N] int >= 0, the document of each query; documents never see each other
    key_segments   [B, M] int, the document of each key; None = `segments` (self-attention)
    positions      [B, N] int, true positions of the queries; None = their index
    key_positions  [B, M] int; None = the index of the key
    query_start    index of the first query among the keys (0, unless earlier keys are cached)
    ranks          [B, N] int, rank of every token among the real ones of its document, where the call cannot
                   know it: new tokens of a decode step. None = counted from key_is_real and the documents
    cross          the queries are other tokens than the keys, and have no place among them
    """

    causal: bool = False
    key_is_real: Tensor | None = None
    segments: Tensor | None = None
    key_segments: Tensor | None = None
    positions: Tensor | None = None
    key_positions: Tensor | None = None
    query_start: int = 0
    ranks: Tensor | None = None
    cross: bool = False

    @classmethod
    def of(
        cls,
        causal: bool,
        key_is_real: Tensor | None = None,
        segments: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Scope:
        """The scope of self-attention, with default positions: the rank among the real tokens of the
        document.
        """
        ranks = None
        if positions is None and (segments is not None or key_is_real is not None):
            facts = key_is_real if segments is None else segments
            assert facts is not None
            real = torch.ones_like(facts, dtype=torch.bool) if key_is_real is None else key_is_real
            positions = ranks = ranks_among_real(real, segments)
        return cls(causal, key_is_real, segments, positions=positions, ranks=ranks)

    @property
    def counts_positions(self) -> bool:
        """Whether a step among the real tokens of a document is a step of the true positions."""
        if self.positions is None:
            return self.key_is_real is None and self.segments is None
        return self.ranks is self.positions

    def documents_of_keys(self) -> Tensor | None:
        """[B, M] documents of the keys, or None when nothing is packed."""
        return self.segments if self.key_segments is None else self.key_segments

    def query_index(self, n: int, device: torch.device) -> Tensor:
        """[N] index of each query in the order of the keys."""
        return torch.arange(n, device=device) + self.query_start

    def query_positions(self, n: int, device: torch.device) -> Tensor:
        """[B or 1, N] true positions of the queries."""
        return self.query_index(n, device)[None] if self.positions is None else self.positions

    def positions_of_keys(self, m: int, device: torch.device) -> Tensor:
        """[B or 1, M] true positions of the keys."""
        if self.key_positions is not None:
            return self.key_positions
        if self.positions is not None and self.positions.shape[1] == m:
            return self.positions
        return torch.arange(m, device=device)[None]

    def ranks_of_keys(self, m: int, device: torch.device) -> Tensor:
        """[B or 1, M] rank of each key among the real tokens of its document.

        Padding has the rank of the real token before it. Steps, strides and blocks are counted by rank, so
        that padding shifts nothing.
        """
        if self.ranks is not None:
            return self.ranks
        documents = self.documents_of_keys()
        if self.key_is_real is None and documents is None:
            return torch.arange(m, device=device)[None]
        facts = self.key_is_real if self.key_is_real is not None else documents
        assert facts is not None
        real = torch.ones_like(facts, dtype=torch.bool) if self.key_is_real is None else self.key_is_real
        return ranks_among_real(real, documents)

    def query_ranks(self, n: int, m: int, device: torch.device) -> Tensor:
        """[B or 1, N] the same of the queries, which are the keys from `query_start` on."""
        return self.ranks_of_keys(m, device)[:, self.query_start : self.query_start + n]

    def visible(self, n: int, m: int, device: torch.device) -> Tensor:
        """[B or 1, 1, N, M] bool, the scope as a matrix. Only for dense twins and dense kernels."""
        index, keys = self.query_index(n, device), torch.arange(m, device=device)
        seen = (
            keys[None, :] <= index[:, None]
            if self.causal
            else torch.ones(n, m, dtype=torch.bool, device=device)
        )
        seen = seen[None, None]  # [1, 1, N, M]
        if self.key_is_real is not None:
            seen = seen & self.key_is_real[:, None, None, :]
        documents = self.documents_of_keys()
        if self.segments is not None and documents is not None:
            seen = seen & (self.segments[:, None, :, None] == documents[:, None, None, :])
        return seen

    def check(self, batch: int, n: int, m: int) -> None:
        """Raise MapformersError where a tensor of the scope does not fit B, N, M."""
        for name, tensor, length in (
            ("key_is_real", self.key_is_real, m),
            ("segments", self.segments, n),
            ("key_segments", self.key_segments, m),
            ("positions", self.positions, n),
            ("key_positions", self.key_positions, m),
        ):
            if tensor is not None:
                shape = tuple(tensor.shape)
                require(
                    shape in ((batch, length), (1, length)),
                    f"scope: {name} must have shape ({batch}, {length}), got {shape}; "
                    "pass one entry per token and batch row",
                )
        if self.key_is_real is not None:
            require(
                self.key_is_real.dtype == torch.bool,
                f"scope: key_is_real must be bool, got {self.key_is_real.dtype}; use mask.bool() "
                "(True = keep)",
            )
        if self.segments is not None:
            require(
                self.key_segments is not None or n == m,
                f"scope: key_segments must be given when queries and keys differ in number, got {n} and {m}; "
                "pass the document of each key",
            )
            require(
                int(self.segments.min()) >= 0,
                "scope: segments must be 0 or more, got a negative one; renumber them",
            )


def ranks_among_real(key_is_real: Tensor, segments: Tensor | None = None) -> Tensor:
    """[B, N] default true positions: the rank of each token among the real ones, from 0 in every document.

    Left padding then moves nothing, and a packed document counts as if it stood alone. Documents are
    taken as contiguous runs.
    """
    rank = key_is_real.long().cumsum(-1) - 1
    if segments is not None:
        first = torch.ones_like(segments, dtype=torch.bool)
        first[:, 1:] = segments[:, 1:] != segments[:, :-1]
        before = rank - key_is_real.long()  # rank of the last real one before
        rank = rank - torch.where(first, before + 1, 0).cummax(-1).values
    return rank.clamp(min=0)


def keep_last(allowed: Tensor, count: int) -> Tensor:
    """Keep in each row of [..., N, M] bool only its last `count` True entries."""
    return allowed & (allowed.flip(-1).long().cumsum(-1).flip(-1) <= count)


def keep_first(allowed: Tensor, count: int) -> Tensor:
    """Keep in each row of [..., N, M] bool only its first `count` True entries."""
    return allowed & (allowed.long().cumsum(-1) <= count)
