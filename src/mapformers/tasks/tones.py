"""Tones: raw waveforms of the same tones in different orders; the order is the class.

Formula  a clip holds `tones` sine tones of fixed frequencies one after the other, a pause between them; each
         of their orders is a class, at most `classes` of them. Phases and loudness are random, noise is
         added, and silence of a random length stands before the first tone. No stretch shorter than a pause
         says anything about the class
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mapformers.core.errors import require


class TonesBatch(NamedTuple):
    """samples [B, N] float32 in about [-1, 1]; target [B] the class."""

    samples: Tensor
    target: Tensor


@dataclass(frozen=True)
class Tones:
    """samples of a clip, `rate` a second; shares of it: a pause before the first tone and behind each,
    and up to `silence` more at the beginning.
    """

    samples: int = 16_000
    tones: int = 3
    classes: int = 6
    rate: int = 16_000
    lowest: float = 220.0
    silence: float = 0.2
    pause: float = 0.1
    noise: float = 0.05

    def __post_init__(self) -> None:
        for name in ("samples", "rate"):
            value = getattr(self, name)
            require(value >= 16, f"tones: {name} must be 16 or more, got {value}; raise it")
        require(2 <= self.tones <= 6, f"tones: tones must lie in 2..6, got {self.tones}; change it")
        orders = math.factorial(self.tones)
        require(
            2 <= self.classes <= orders,
            f"tones: classes must lie in 2..{orders}, the orders there are, got {self.classes}; change it",
        )
        require(
            self.lowest > 0 and self.lowest * 2 ** (self.tones / 2) < self.rate / 2,
            f"tones: lowest must be above 0 and leave all tones below rate / 2, got {self.lowest}; lower it",
        )
        require(0 <= self.silence < 1, f"tones: silence must lie in [0, 1), got {self.silence}; lower it")
        require(
            0 <= self.pause < (1 - self.silence) / (self.tones + 1),
            f"tones: pause must lie below (1 - silence) / (tones + 1), got {self.pause}; lower it",
        )
        require(self.noise >= 0, f"tones: noise must be 0 or more, got {self.noise}; raise it")

    def batch(self, size: int, generator: torch.Generator) -> TonesBatch:
        """`size` fresh clips out of the generator; the global random state is not touched."""
        device = generator.device

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device=device)

        orders = torch.tensor(list(itertools.permutations(range(self.tones)))[: self.classes], device=device)
        target = torch.randint(len(orders), (size,), generator=generator, device=device)
        pitches = self.lowest * 2 ** (torch.arange(self.tones, device=device) / 2)  # half an octave apart
        # At least a pause before the first tone too: the border of the clip says nothing then.
        start = ((self.pause + uniform(size, 1) * self.silence) * self.samples).floor()  # [B, 1]
        place = torch.arange(self.samples, device=device) - start  # [B, N] samples since the first tone
        length = (self.samples - start) / self.tones  # [B, 1] of a tone and the pause behind it
        index = (place / length).floor().clamp(0, self.tones - 1).long()  # which tone sounds
        pitch = pitches[orders[target]].gather(1, index)
        phase = (2 * math.pi * uniform(size, self.tones)).gather(1, index)
        loudness = (0.5 + 0.5 * uniform(size, self.tones)).gather(1, index)
        wave = loudness * torch.sin(2 * math.pi * pitch * place / self.rate + phase)
        sounds = (place >= 0) & (place - index * length < length - self.pause * self.samples)
        wave = wave * sounds
        noise = torch.randn(size, self.samples, generator=generator, device=device) * self.noise
        return TonesBatch(wave + noise, target)
