"""Endless passes over a fixed number of examples: which one comes i-th is a function of (seed, i) alone."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from mapformers.core.errors import require
from mapformers.train.windows import ENDLESS


class Shuffled(Dataset[Any]):
    """get(i) of `count` examples, each pass over them in a new order; a run resumes exactly."""

    def __init__(self, count: int, get: Callable[[int], Any], seed: int) -> None:
        require(count >= 1, f"data: the train split must hold examples, got {count}; give more data")
        self.count, self.get, self.seed = count, get, seed
        self._order = functools.lru_cache(maxsize=2)(self._draw_order)  # two passes are alive at a border

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Any:
        return self.get(int(self._order(index // self.count)[index % self.count]))

    def _draw_order(self, number: int) -> np.ndarray:
        draw = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, number))))
        return draw.permutation(self.count)


class Fresh(Dataset[Any]):
    """make(seed of the example) of a generator: an endless stream in which nothing comes twice."""

    def __init__(self, make: Callable[[int], Any], seed: int) -> None:
        self.make, self.seed = make, seed

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Any:
        return self.make(seed_of(self.seed, index))


def seed_of(*numbers: int) -> int:
    """One seed for a torch.Generator out of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
