"""Pathfinder: are the two marked ends those of one dashed path, or of two?

Paper    Linsley, Kim, Veerabadran, Serre 2018, "Learning long-range spatial dependencies with horizontal
         gated recurrent units", NeurIPS, arXiv 1805.08315; sizes of Tay et al. 2021, arXiv 2011.04006
Formula  two paths of `reach` steps of a pixel, whose heading turns a little with each, and shorter ones;
         none comes nearer to another, or to itself, than `apart` pixels; all are dashed, with gaps below half
         of that. Two discs mark both ends of the first path (class 1), or one end of each (class 0)
Differs  The public generator drops the discs, so that its images cannot be solved; here they always stand.
         The second path begins where another walk from the start of the first would have ended, with the
         heading of that walk turned round: distance of the discs and headings at them do not tell the class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mapformers.core.errors import require

CANDIDATES = 16  # paths drawn for each that is taken
DECOYS = 48  # the same for the second path, which has less freedom
TURN = 0.35  # largest change of the heading in a step, in radians
DASH, GAP = 2.2, 1.2  # pixels
MARGIN = 2.5  # pixels between a path and the border
RADIUS = 1.6  # of the discs
SPLATS = 3  # dots drawn for each pixel of a path
ROUNDS = 200


class PathfinderBatch(NamedTuple):
    """images [B, size, size] in [0, 1]; target [B]; ends [B, 2, 2] of the discs; paths [B, P, reach + 1, 2]
    as (x, y), the two long ones first, NaN where a short path ends.
    """

    images: Tensor
    target: Tensor
    ends: Tensor
    paths: Tensor


@dataclass(frozen=True)
class Pathfinder:
    """Sizes of the images: `size` pixels a side, long paths of `reach` pixels, `distractors` short ones."""

    size: int = 32
    reach: int = 20
    distractors: int = 4
    apart: float = 4.5

    def __post_init__(self) -> None:
        require(self.size >= 24, f"pathfinder: size must be 24 or more, got {self.size}; use 32")
        require(
            6 <= self.reach <= self.size,
            f"pathfinder: reach must lie in 6..size={self.size}, got {self.reach}; lower it",
        )
        require(
            self.distractors >= 0,
            f"pathfinder: distractors must be 0 or more, got {self.distractors}; raise it",
        )
        require(
            2 * GAP < self.apart <= self.size / 6,
            f"pathfinder: apart must lie in ({2 * GAP}, {self.size / 6:.1f}], got {self.apart}; use 4.5",
        )

    def batch(self, size: int, generator: torch.Generator) -> PathfinderBatch:
        """`size` fresh images out of the generator; the global random state is not touched."""
        device = generator.device
        target = torch.randint(2, (size,), generator=generator, device=device)
        paths = self._layout(size, generator)
        first, second = paths[:, 0], paths[:, 1]
        other = torch.where(target[:, None] == 1, first[:, -1], second[:, 0])
        ends = torch.stack([first[:, 0], other], 1)  # [B, 2, 2]
        images = torch.maximum(self._dashes(paths, generator), self._discs(ends))
        return PathfinderBatch(images, target, ends, paths)

    def _layout(self, size: int, generator: torch.Generator) -> Tensor:
        """[B, P, reach + 1, 2] paths that keep apart; images without room for two long ones come again."""
        done: list[Tensor] = []
        count = 0
        for _ in range(ROUNDS):
            long = self._candidates(size, self.reach, generator)
            taken = torch.zeros(size, 0, 2, device=generator.device)
            kept: list[Tensor] = []
            fine = torch.ones(size, dtype=torch.bool, device=generator.device)
            for number in range(2 + self.distractors):
                short = number >= 2
                if number == 1:
                    paths = self._decoys(kept[0], generator)
                else:
                    paths = self._candidates(size, self.reach // 3, generator) if short else long
                chosen, found = self._pick(paths, taken)
                fine = fine & found if not short else fine
                chosen = chosen.masked_fill(~found[:, None, None], math.nan)
                whole = chosen.new_full((size, self.reach + 1, 2), math.nan)
                whole[:, : chosen.shape[1]] = chosen
                kept.append(whole)
                taken = torch.cat([taken, chosen], 1)
            done.append(torch.stack(kept, 1)[fine])
            count += int(fine.sum())
            if count >= size:
                return torch.cat(done)[:size]
        require(
            False,
            f"pathfinder: paths of {self.reach} pixels must fit twice into {self.size} x {self.size}, got no "
            "room; lower reach or apart",
        )
        raise AssertionError("unreachable")

    def _candidates(self, size: int, reach: int, generator: torch.Generator) -> Tensor:
        """[B, C, reach + 1, 2] walks; those that leave the image or meet themselves are NaN."""
        device, shape = generator.device, (size, CANDIDATES)
        start = torch.rand(*shape, 2, generator=generator, device=device)
        start = MARGIN + start * (self.size - 1 - 2 * MARGIN)
        heading = 2 * math.pi * torch.rand(*shape, generator=generator, device=device)
        return self._kept(_walk(start, heading, reach, generator))

    def _decoys(self, first: Tensor, generator: torch.Generator) -> Tensor:
        """[B, D, reach + 1, 2] walks that begin at the ends of others from the start of `first` [B, P, 2]."""
        shape = (len(first), DECOYS)
        start, step = first[:, 0], first[:, 1] - first[:, 0]
        heading = torch.atan2(step[:, 1], step[:, 0])[:, None].expand(shape)
        other = self._kept(_walk(start[:, None].expand(*shape, 2), heading, self.reach, generator))
        back = other[:, :, -2] - other[:, :, -1]
        heading = torch.atan2(back[..., 1], back[..., 0])
        return self._kept(_walk(other[:, :, -1], heading, self.reach, generator))

    def _kept(self, walk: Tensor) -> Tensor:
        """The walks [B, C, P, 2]; those that leave the image or meet themselves become NaN."""
        inside = ((walk >= MARGIN) & (walk <= self.size - 1 - MARGIN)).flatten(2).all(-1)
        index = torch.arange(walk.shape[2], device=walk.device)
        far = (index[:, None] - index).abs() > 1.6 * self.apart
        meets = torch.zeros_like(inside)
        whole = walk[inside]  # [K, P, 2]
        meets[inside] = ((torch.cdist(whole, whole) < self.apart) & far).flatten(1).any(-1)
        return walk.masked_fill(~(inside & ~meets)[..., None, None], math.nan)

    def _pick(self, paths: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
        """Of each image the first path [B, P, 2] apart from the points `taken`, and whether there is one."""
        valid = ~paths[..., 0, 0].isnan()  # [B, C]
        if taken.shape[1]:
            distances = torch.cdist(paths.flatten(1, 2), taken).unflatten(1, paths.shape[1:3])
            near = (distances < self.apart).flatten(2).any(-1)  # NaN is never near
            valid = valid & ~near
        index = valid.int().argmax(1)
        return paths[torch.arange(len(paths), device=paths.device), index], valid.any(1)

    def _dashes(self, paths: Tensor, generator: torch.Generator) -> Tensor:
        """[B, size, size] the paths as dots close to each other, where a dash is."""
        batch, count = paths.shape[:2]
        share = torch.arange(SPLATS, device=paths.device) / SPLATS
        here, there = paths[:, :, :-1, None], paths[:, :, 1:, None]
        dots = (here + (there - here) * share[:, None]).flatten(2, 3)  # [B, P, reach x SPLATS, 2]
        along = torch.arange(dots.shape[2], device=paths.device) / SPLATS
        phase = torch.rand(batch, count, 1, generator=generator, device=generator.device) * (DASH + GAP)
        drawn = ((along + phase) % (DASH + GAP) < DASH) & ~dots[..., 0].isnan()
        dots = dots.nan_to_num(0.0)
        image = torch.zeros(batch, self.size * self.size, device=paths.device)
        low = dots.floor()
        for dx in (0, 1):
            for dy in (0, 1):
                corner = low + torch.tensor([dx, dy], device=paths.device)
                weight = (1 - (dots - corner).abs()).clamp(min=0).prod(-1) * drawn
                place = (corner[..., 1] * self.size + corner[..., 0]).long()
                image.scatter_add_(1, place.flatten(1), weight.flatten(1))
        return image.clamp(max=1.0).view(batch, self.size, self.size)

    def _discs(self, ends: Tensor) -> Tensor:
        """[B, size, size] two filled discs with soft borders."""
        axis = torch.arange(self.size, device=ends.device)
        x, y = ends[..., 0, None, None], ends[..., 1, None, None]  # [B, 2, 1, 1]
        distance = ((axis - x).square() + (axis[:, None] - y).square()).sqrt()  # [B, 2, size, size]
        return (RADIUS + 0.5 - distance).clamp(0, 1).amax(1)


def _walk(start: Tensor, heading: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """[B, C, reach + 1, 2] from start [B, C, 2]: a step along heading [B, C], then turns and steps."""
    turns = torch.rand(*heading.shape, reach - 1, generator=generator, device=generator.device)
    turns = torch.nn.functional.pad((2 * turns - 1) * TURN, (1, 0))
    angles = heading[..., None] + turns.cumsum(-1)
    steps = torch.stack([angles.cos(), angles.sin()], -1)
    return torch.cat([start[:, :, None], start[:, :, None] + steps.cumsum(-2)], -2)
