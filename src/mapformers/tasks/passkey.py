"""Passkey: a number hidden in a long text, asked for at its end.

Paper    Mohtashami, Jaggi 2023, "Landmark Attention", arXiv 2305.16300, section 4.2; several needles as in
         Hsieh et al. 2024, "RULER", arXiv 2404.06654
Formula  filler, "The pass key of NAME is 7143. ", filler, .., "What is the pass key of NAME? It is 7143": the
         digits behind the last question are to be said, each given those before it
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mapformers.core.errors import require

NAMES = ("Ann", "Bob", "Cid", "Dan", "Eve", "Fay", "Gus", "Hal")
FILLER = (
    "The grass is green. ",
    "The sky is blue. ",
    "The sun is yellow. ",
    "Here we go. ",
    "There and back again. ",
    "It was a long way home. ",
)


class PasskeyBatch(NamedTuple):
    """tokens [B, N] bytes; place [B, digits] before each digit; target [B, digits] those digits as bytes."""

    tokens: Tensor
    place: Tensor
    target: Tensor


@dataclass(frozen=True)
class Passkey:
    """`length` bytes in all. depth: where the needle asked for stands, 0 = first, 1 = last, None = any."""

    length: int = 512
    digits: int = 4
    needles: int = 1
    depth: float | None = None

    def __post_init__(self) -> None:
        require(self.digits >= 1, f"passkey: digits must be 1 or more, got {self.digits}; raise it")
        require(
            1 <= self.needles <= len(NAMES),
            f"passkey: needles must lie in 1..{len(NAMES)}, got {self.needles}; change it",
        )
        require(
            self.depth is None or 0 <= self.depth <= 1,
            f"passkey: depth must lie in [0, 1], got {self.depth}; change it",
        )
        fixed = self.needles * len(_needle("Ann", "0" * self.digits)) + len(_question("Ann")) + self.digits
        require(
            self.length >= fixed,
            f"passkey: length must be {fixed} or more for so many needles, got {self.length}; raise it",
        )

    def batch(self, size: int, generator: torch.Generator) -> PasskeyBatch:
        """`size` fresh texts out of the generator; the global random state is not touched."""
        rows = [self._text(generator) for _ in range(size)]
        tokens = torch.tensor([list(text.encode()) for text in rows])
        place = torch.arange(self.length - self.digits - 1, self.length - 1).expand(size, -1)
        return PasskeyBatch(tokens, place, tokens[:, -self.digits :])

    def _text(self, generator: torch.Generator) -> str:
        def below(limit: int, count: int = 1) -> list[int]:
            device = generator.device
            drawn: list[int] = torch.randint(limit, (count,), generator=generator, device=device).tolist()
            return drawn

        order = torch.rand(len(NAMES), generator=generator, device=generator.device).argsort().tolist()
        names = [NAMES[i] for i in order[: self.needles]]
        keys = ["".join(map(str, below(10, self.digits))) for _ in names]
        needles = [_needle(name, key) for name, key in zip(names, keys, strict=True)]
        tail = _question(names[0]) + keys[0]
        room = self.length - len(tail) - sum(map(len, needles))
        depths = torch.rand(self.needles, generator=generator, device=generator.device).tolist()
        if self.depth is not None:
            depths[0] = self.depth
        filler = "".join(FILLER[i] for i in below(len(FILLER), room // 10 + 2))[:room]
        text, done = "", 0
        for depth, needle in sorted(zip(depths, needles, strict=True)):
            cut = round(depth * room)
            text, done = text + filler[done:cut] + needle, cut
        return text + filler[done:] + tail


def _needle(name: str, key: str) -> str:
    return f"The pass key of {name} is {key}. "


def _question(name: str) -> str:
    return f"What is the pass key of {name}? It is "
