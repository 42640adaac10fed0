"""ListOps: what is the value of a nested list of operators and digits?

Paper    Nangia, Bowman 2018, "ListOps", NAACL student workshop; Tay et al. 2021, "Long Range Arena", ICLR,
         arXiv 2011.04006, section 2.2.1
Formula  a tree is a digit with probability `leaf` (the root never) or at depth `depth`; else MIN, MAX, MED
         (the median, rounded down) or SM (the sum modulo 10) of 2 .. `arguments` trees. Operators with their
         bracket, digits and closing brackets count; a tree is kept if fewest < tokens < most
Differs  The public generator writes round brackets around every operation, which its users drop again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mapformers.core.errors import require

PAD, DIGIT, CLOSE = 0, 1, 15  # digits are 1 .. 10
OPERATORS = {11: "[MIN", 12: "[MAX", 13: "[MED", 14: "[SM"}
VOCABULARY = 16


class ListOpsBatch(NamedTuple):
    """tokens [B, longest], padded right with 0; is_real [B, longest] bool; target [B] digits."""

    tokens: Tensor
    is_real: Tensor
    target: Tensor


@dataclass(frozen=True)
class ListOps:
    """Sizes of the trees."""

    fewest: int = 500
    most: int = 2000
    depth: int = 10
    arguments: int = 10
    leaf: float = 0.75

    def __post_init__(self) -> None:
        require(self.fewest >= 0, f"listops: fewest must be 0 or more, got {self.fewest}; raise it")
        require(
            self.most >= max(self.fewest + 2, 5),
            f"listops: most must be {max(self.fewest + 2, 5)} or more, got {self.most}; raise it",
        )
        require(self.depth >= 2, f"listops: depth must be 2 or more, got {self.depth}; use 10")
        require(self.arguments >= 2, f"listops: arguments must be 2 or more, got {self.arguments}; use 10")
        require(0 <= self.leaf < 1, f"listops: leaf must lie in [0, 1), got {self.leaf}; use 0.75")

    def batch(self, size: int, generator: torch.Generator) -> ListOpsBatch:
        """`size` fresh trees out of the generator; the global random state is not touched."""
        draw = _Numbers(generator)
        rows = [self._row(draw) for _ in range(size)]
        longest = max(len(row) for row in rows)
        tokens = torch.zeros(size, longest, dtype=torch.long)
        for place, row in enumerate(rows):
            tokens[place, : len(row)] = torch.tensor(row)
        return ListOpsBatch(tokens, tokens != PAD, torch.tensor([evaluate(row) for row in rows]))

    def _row(self, draw: _Numbers) -> list[int]:
        """The tokens of a tree of a length that is kept."""
        for _ in range(100_000):
            row = self._grow(draw)
            if row is not None and self.fewest < len(row) < self.most:
                return row
        require(
            False,
            f"listops: trees must have {self.fewest} to {self.most} tokens, got none in 100,000 tries; raise "
            "depth or arguments, or lower fewest",
        )
        raise AssertionError("unreachable")

    def _grow(self, draw: _Numbers) -> list[int] | None:
        """The tokens of one tree; None as soon as it is too long.

        A stack holds how many arguments each open operator still waits for.
        """
        tokens: list[int] = []
        waiting: list[int] = []
        while True:
            depth = len(waiting) + 1  # of the tree that comes next
            if waiting and (depth >= self.depth or draw.below(1.0) < self.leaf):
                tokens.append(DIGIT + int(draw.below(10)))
            else:
                tokens.append(11 + int(draw.below(len(OPERATORS))))
                waiting.append(2 + int(draw.below(self.arguments - 1)))
                continue
            while waiting:
                waiting[-1] -= 1
                if waiting[-1]:
                    break
                waiting.pop()
                tokens.append(CLOSE)
            if not waiting:
                return tokens
            if len(tokens) + len(waiting) >= self.most:
                return None


def evaluate(tokens: Iterable[int]) -> int:
    """The value of a tree by its tokens; padding is skipped. Raises MapformersError for what is no tree."""
    stack: list[list[int]] = [[]]
    for token in tokens:
        if token == PAD:
            continue
        if token in OPERATORS:
            stack.append([token])
            continue
        value = token - DIGIT
        if token == CLOSE:
            require(
                len(stack) > 1 and len(stack[-1]) > 1,
                "listops: a bracket must close a list, got none; see OPERATORS",
            )
            operator, *values = stack.pop()
            value = _value(operator, values)
        stack[-1].append(value)
    require(
        len(stack) == 1 and len(stack[0]) == 1,
        f"listops: tokens must be one tree, got {len(stack) - 1} open lists and {len(stack[0])} values; see "
        "OPERATORS",
    )
    return stack[0][0]


def to_text(tokens: Iterable[int]) -> str:
    """[MAX 2 9 [MIN 4 7 ] 0 ] and the like."""
    names = {**OPERATORS, CLOSE: "]", **{DIGIT + i: str(i) for i in range(10)}}
    return " ".join(names[token] for token in tokens if token != PAD)


def _value(operator: int, values: list[int]) -> int:
    ordered, half = sorted(values), len(values) // 2
    if OPERATORS[operator] == "[MED":
        return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) // 2
    return {"[MIN": ordered[0], "[MAX": ordered[-1], "[SM": sum(values) % 10}[OPERATORS[operator]]


class _Numbers:
    """Uniform numbers out of a generator, drawn in bulk."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.left: list[float] = []

    def below(self, limit: float) -> float:
        """Uniform in [0, limit)."""
        if not self.left:
            self.left = torch.rand(1 << 14, generator=self.generator, device=self.generator.device).tolist()
        return self.left.pop() * limit
