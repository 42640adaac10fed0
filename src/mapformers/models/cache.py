"""The decode state of a whole model, as the cache that `generate()` of transformers carries along."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from mapformers.core.errors import MapformersError, require
from mapformers.core.scope import ranks_among_real


class BlockSlot(CacheLayerMixin):
    """The decode state of one block, made by its `init_state` at the first use."""

    is_compileable = False
    is_croppable = False
    supports_early_init = False

    def __init__(self) -> None:
        super().__init__()
        self.state: Any = None
        self.seen = 0  # columns, padding included

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Refused: blocks write their state themselves."""
        _refuse("keys and values from outside")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: blocks write their state themselves."""
        _refuse("keys and values from outside")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of the attention mask that belong to the next call, and where they start."""
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        """Columns seen so far, padding included."""
        return self.seen

    def get_max_length(self) -> int:
        """-1: there is no maximum."""
        return -1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let row i continue what was row beam_idx[i]."""
        if self.state is not None:
            self.state = self.state.reorder(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows."""
        self.reorder_cache(indices)

    def crop(self, tokens_to_remove: int) -> None:
        """Refused, unless there is nothing to remove: states that forget cannot go back."""
        if tokens_to_remove != 0:
            _refuse("crop (assisted and speculative decoding)")

    def reset(self) -> None:
        """Forget everything."""
        self.state, self.seen = None, 0

    def offload(self) -> None:
        """Refused."""
        _refuse("offloading")

    def prefetch(self) -> None:
        """Refused."""
        _refuse("offloading")


class MapformerCache(Cache):
    """One slot per block, and the number of real tokens of each row.

    Made by `generate()`, or by `model(..., use_cache=True)`; to continue by hand, pass what `past_key_values`
    of the output holds. It is changed in place.
    """

    layers: list[BlockSlot]

    def __init__(self, blocks: int) -> None:
        super().__init__(layers=[BlockSlot() for _ in range(blocks)])
        self.real: Tensor | None = None  # [B] real tokens seen

    def positions(self, key_is_real: Tensor | None, batch: int, new: int, device: torch.device) -> Tensor:
        """[B, new] true positions of the next tokens: the ranks among the real ones of their row."""
        real = torch.ones(batch, new, dtype=torch.bool, device=device) if key_is_real is None else key_is_real
        before = 0 if self.real is None else self.real[:, None]
        return ranks_among_real(real) + before

    def check_batch(self, batch: int) -> None:
        """Raise MapformersError unless the next tokens come in as many rows as the cache holds."""
        held = batch if self.real is None else self.real.shape[0]
        require(
            held == batch,
            f"cache: the batch must have the {held} rows the cache was filled with, got {batch}; "
            "start a new cache, or select rows with batch_select_indices",
        )

    def advance(self, key_is_real: Tensor | None, batch: int, new: int, device: torch.device) -> None:
        """Count the tokens of a step, after all blocks have run."""
        counts = torch.full((batch,), new, device=device) if key_is_real is None else key_is_real.sum(-1)
        self.real = counts if self.real is None else self.real + counts
        for slot in self.layers:
            slot.seen += new

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let row i continue what was row beam_idx[i]."""
        super().reorder_cache(beam_idx)
        if self.real is not None:
            self.real = self.real.index_select(0, beam_idx.to(self.real.device))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows, given by index or as a mask."""
        self.reorder_cache(indices.nonzero().squeeze(-1) if indices.dtype == torch.bool else indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row this many times."""
        if self.real is not None:
            rows = torch.arange(self.real.shape[0], device=self.real.device)
            self.reorder_cache(rows.repeat_interleave(repeats))

    def activate_past_recording(self) -> None:
        """Refused: states that forget cannot go back."""
        _refuse("going back (assisted and speculative decoding)")

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.real = None

    @property
    def batch_size(self) -> int:
        """Rows, -1 before the first use."""
        return -1 if self.real is None else self.real.shape[0]

    @property
    def is_initialized(self) -> bool:
        """Whether anything was seen."""
        return self.real is not None


def _refuse(what: str) -> NoReturn:
    raise MapformersError(
        f"cache: decode states do not support {what}; use greedy search, sampling or beam search"
    )
