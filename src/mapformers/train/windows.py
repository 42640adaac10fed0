"""Training sequences: which bytes form sequence number i is a function of (seed, i) alone, so a run resumes
exactly.
"""

import functools

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mapformers.core.errors import require

ENDLESS = 1 << 40  # more sequences than any run asks for


class Windows(Dataset[dict[str, Tensor]]):
    """Endless sequences of `context` bytes of `stream` [n] uint8, each pass over the stream in a new order.

    A pass cuts the stream into n // context windows from a random first byte (a multiple of `record`) and
    visits each once.
    """

    def __init__(self, stream: np.ndarray, context: int, seed: int, record: int = 1) -> None:
        require(
            len(stream) >= context,
            f"data: the train split must be at least as long as the context ({context} bytes), got "
            f"{len(stream)}; "
            "give more data or --set data.context=N with a smaller N",
        )
        require(
            context % record == 0,
            f"data: context must be a multiple of record, got {context} and {record}; change one",
        )
        self.stream, self.context, self.seed, self.record = stream, context, seed, record
        self.per_pass = max(1, (len(stream) - context + record) // context)  # leaves room to move the cuts
        self._order = functools.lru_cache(maxsize=2)(self._draw_order)  # two passes are alive at a border

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        start = self.start_of(index)
        tokens = torch.from_numpy(self.stream[start : start + self.context].astype(np.int64))
        return {"input_ids": tokens, "labels": tokens}

    def start_of(self, index: int) -> int:
        """The first byte of sequence `index`."""
        first, order = self._order(index // self.per_pass)
        return int(first + order[index % self.per_pass] * self.context)

    def _draw_order(self, number: int) -> tuple[int, np.ndarray]:
        draw = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, number))))
        room = len(self.stream) - self.per_pass * self.context
        first = int(draw.integers(0, room // self.record + 1)) * self.record
        return first, draw.permutation(self.per_pass)
