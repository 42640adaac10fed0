"""The edges of the binary tree over n leaves, as index tensors.

Nodes are numbered leaves first, then the spans level by level: node s of level u covers the leaves
[s 2^u, (s + 1) 2^u), cut at n.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

LEFT, RIGHT = 0, 1
SELF = 0  # the kind of the edge from a leaf to itself


@dataclass(frozen=True)
class TreeShape:
    """What decides the edges: leaves, nodes per level and side, the last level with kinds of its own."""

    leaves: int
    nodes: int
    clip: int
    causal: bool

    @property
    def sides(self) -> tuple[int, ...]:
        """To the left only, if causal."""
        return (LEFT,) if self.causal else (LEFT, RIGHT)

    @property
    def kinds(self) -> int:
        """How many kinds of edges a leaf has: (level, side, place), and itself."""
        return 1 + (self.clip + 1) * len(self.sides) * self.nodes

    @property
    def counts(self) -> list[int]:
        """Nodes of each level, from the leaves to the root."""
        counts = [self.leaves]
        while counts[-1] > 1:
            counts.append((counts[-1] + 1) // 2)
        return counts

    @property
    def spans(self) -> int:
        """Nodes above the leaves."""
        return sum(self.counts[1:])


@dataclass(frozen=True)
class TreeEdges:
    """node [n, F] int32, what each leaf sees, -1 = nothing; kind [F] of the edges of each column
    span_of_leaf [n, L] the span above each leaf, level by level, counted from 0
    start [spans] the first leaf of each span
    """

    node: Tensor
    kind: Tensor
    span_of_leaf: Tensor
    start: Tensor

    def to(self, device: torch.device) -> TreeEdges:
        """The same on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("node", "kind", "span_of_leaf", "start")}
        return replace(self, **moved)


@functools.lru_cache(maxsize=4)
def tree_edges(shape: TreeShape) -> TreeEdges:
    """All edges; kept for the last few lengths."""
    counts = shape.counts
    first = [sum(counts[:level]) for level in range(len(counts))]
    leaf = torch.arange(shape.leaves, device="cpu")
    columns = [(leaf.int(), SELF)]
    for side in shape.sides:
        columns += _side(shape, side, counts, first)
    spans = [(leaf >> level) + first[level] - shape.leaves for level in range(1, len(counts))]
    starts = [torch.arange(count, device="cpu") << level for level, count in enumerate(counts)][1:]
    return TreeEdges(
        node=torch.stack([node for node, _ in columns], 1),
        kind=torch.tensor([kind for _, kind in columns], device="cpu"),
        span_of_leaf=torch.stack(spans, 1) if spans else leaf[:, None][:, :0],
        start=torch.cat(starts) if starts else leaf[:0],
    )


def _side(shape: TreeShape, side: int, counts: list[int], first: list[int]) -> list[tuple[Tensor, int]]:
    """What every leaf sees on one side: `nodes` of each level, nearest first, then on one level higher.

    A parent of which one child is covered already is replaced by the other child. Columns (node [n], kind).
    """
    leaf = torch.arange(shape.leaves, device="cpu")
    step = -1 if side == LEFT else 1
    at = leaf + step  # the next node, counted in its level
    half = torch.zeros_like(leaf, dtype=torch.bool)  # one of its children is covered
    found = []
    for level, count in enumerate(counts):
        for place in range(shape.nodes):
            node = torch.where((at >= 0) & (at < count), first[level] + at, -1)
            if place == 0 and level > 0:
                child = 2 * at + (side == RIGHT)
                there = (child >= 0) & (child < counts[level - 1])
                node = torch.where(half, torch.where(there, first[level - 1] + child, -1), node)
            if (node >= 0).any():
                kind = (min(level, shape.clip) * len(shape.sides) + side) * shape.nodes + place
                found.append((node.int(), 1 + kind))
            at = at + step
        half = at % 2 == (0 if side == LEFT else 1)
        at = at >> 1
    return found
