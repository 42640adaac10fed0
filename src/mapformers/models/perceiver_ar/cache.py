"""The decode state of Perceiver AR: keys of everything, and the latents of the window that is open."""

from __future__ import annotations

import torch
from torch import Tensor

from mapformers.models.cache import MapformerCache


class PerceiverARCache(MapformerCache):
    """Slot 0 belongs to the layer that reads everything, the others to the layers over the latents.

    start   first latent of the open window
    recent  [B, n, dim] what the first layer made of the latents of this window
    """

    def __init__(self, blocks: int) -> None:
        super().__init__(blocks)
        self.start = 0
        self.recent: Tensor | None = None

    def keep(self, made: Tensor, most: int) -> None:
        """Remember the newest `most` outputs of the first layer."""
        held = made if self.recent is None else torch.cat([self.recent, made], 1)
        self.recent = held[:, max(0, held.shape[1] - most) :]

    def open_window(self, start: int) -> None:
        """Forget the latents' states: a window begins at `start`."""
        self.start = start
        for slot in self.layers[1:]:
            slot.state = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let row i continue what was row beam_idx[i]."""
        super().reorder_cache(beam_idx)
        if self.recent is not None:
            self.recent = self.recent.index_select(0, beam_idx.to(self.recent.device))

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.start, self.recent = 0, None
