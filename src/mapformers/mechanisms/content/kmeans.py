"""Online spherical k-means: one set of centroids per key/value head, moved by an explicit update.

Nothing here runs inside a forward but `assign`, which reads frozen buffers: a batch can never see its own
update. `observe` gathers sums; `update` joins them over micro-batches and ranks and moves the centroids, so
the result is that of one process with the joined batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mapformers.core.draw import normal
from mapformers.kernels.nearest import centred, cosines, nearest

SAMPLE_PER_ROW = 64  # vectors per batch row and head kept for the initialisation and for revival
LLOYD_STEPS = 10  # of the initialisation
DEAD_SHARE = 0.1  # a cluster with less than this part of its fair share of tokens is revived
LOAD_RATE = 1e-3  # step of the load bias, in units of cosine similarity


def directions(x: Tensor) -> Tensor:
    """Layer norm without scale or bias, then unit length: [.., D]. In float32 or wider."""
    rest, length = centred(x)
    return rest / length


def unit_rows(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random directions."""
    return directions(normal(shape, generator))


class KMeans(nn.Module):
    """Centroids [G, C, D] of unit length, with load bias; float32 or wider whatever the
    model's type.
    """

    centroids: Tensor
    bias: Tensor
    share: Tensor
    initialised: Tensor
    drift: Tensor

    def __init__(self, centroids: Tensor, decay: float) -> None:
        super().__init__()
        groups, clusters, _ = centroids.shape
        self.decay = decay
        self.register_buffer("centroids", centroids.float())
        self.register_buffer("bias", torch.zeros(groups, clusters, dtype=torch.float32))
        self.register_buffer("share", torch.full((groups, clusters), 1.0 / clusters, dtype=torch.float32))
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))
        self.register_buffer("drift", torch.zeros((), dtype=torch.float32))
        self.forget()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KMeans:
        """Moves and widens like any module, but never narrows below float32: 0.999 x 1 is 1 in bfloat16."""
        kept = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, before in kept.items():
            after = getattr(self, name)
            if after.dtype in (torch.float16, torch.bfloat16):
                setattr(self, name, before.to(after.device))
        return self

    def similarity(self, x: Tensor) -> Tensor:
        """[B, H, N, C] cosine of x [B, H, N, D] with its centroids, H a multiple of G."""
        return cosines(x, self.centroids)

    def best(self, x: Tensor, count: int) -> Tensor:
        """[B, H, N, count] the clusters of x [B, H, N, D] by similarity with the load bias, best first."""
        return nearest(x, self.centroids, self.bias, count)

    def biased(self, similarity: Tensor) -> Tensor:
        """Similarity with the load bias, by which tokens are assigned. No gradient."""
        bias = self.bias.repeat_interleave(similarity.shape[1] // self.bias.shape[0], 0)
        return similarity.detach() + bias.to(similarity.dtype).unsqueeze(-2)

    def forget(self) -> None:
        """Drop the statistics gathered since the last update."""
        self._sums: Tensor | None = None  # [G, C, D]
        self._counts: Tensor | None = None  # [G, C]
        self._samples: list[Tensor] = []  # [G, S, D] each

    @torch.no_grad()
    def observe(self, x: Tensor, is_real: Tensor | None) -> None:
        """Gather statistics of x [B, H, N, D]; padding does not count."""
        groups, clusters, dim = self.centroids.shape
        unit = directions(x)
        member = F.one_hot(self.best(x, 1).squeeze(-1), clusters).to(unit.dtype)  # [B, H, N, C]
        if is_real is not None:
            member = member * is_real[:, None, :, None]
            unit = unit * is_real[:, None, :, None]
        sums = (member.transpose(-1, -2) @ unit).sum(0)  # [H, C, D]
        counts = member.sum((0, 2))  # [H, C]
        sums, counts = sums.view(groups, -1, clusters, dim).sum(1), counts.view(groups, -1, clusters).sum(1)
        self._sums = sums if self._sums is None else self._sums + sums
        self._counts = counts if self._counts is None else self._counts + counts
        step = max(1, x.shape[2] // SAMPLE_PER_ROW)
        sample = unit[:, :, ::step][:, :, :SAMPLE_PER_ROW]  # [B, H, s, D]
        self._samples.append(sample.unflatten(1, (groups, -1)).transpose(0, 1).flatten(1, 3))

    @torch.no_grad()
    def update(self) -> None:
        """Move the centroids by what was observed since the last update, on all ranks."""
        if self._sums is None or self._counts is None:
            return
        sums, counts = _summed(self._sums), _summed(self._counts)
        samples = _canonical(_gathered(torch.cat(self._samples, 1)))
        self.forget()
        usable = (samples.norm(dim=-1) > 0.5).any(1)  # padding and constant vectors have no direction
        if not bool(usable.all()):
            return  # nothing to learn from, in one head at least
        before = self.centroids.clone()
        if not bool(self.initialised):
            self.centroids.copy_(_first_centroids(samples, self.centroids.shape[1]))
            self.initialised.fill_(True)
        else:
            self._step(sums, counts, samples)
        self.drift.copy_((1 - (before * self.centroids).sum(-1)).mean())

    def _step(self, sums: Tensor, counts: Tensor, samples: Tensor) -> None:
        clusters = counts.shape[1]
        seen = counts.sum(1, keepdim=True).clamp(min=1)
        fraction = (counts / seen).to(self.share.dtype)
        mean = F.normalize(sums, dim=-1).to(self.centroids.dtype)
        moved = F.normalize(self.decay * self.centroids + (1 - self.decay) * mean, dim=-1)
        self.centroids.copy_(torch.where((counts > 0).unsqueeze(-1), moved, self.centroids))
        self.share.mul_(self.decay).add_((1 - self.decay) * fraction)
        self.bias.add_(LOAD_RATE * torch.sign(1.0 / clusters - fraction))
        self.bias.sub_(self.bias.mean(1, keepdim=True))
        self._revive(samples)

    def _revive(self, samples: Tensor) -> None:
        """Dead clusters start again from the sampled vectors that fit the living ones least."""
        groups, clusters, _ = self.centroids.shape
        dead = self.share < DEAD_SHARE / clusters
        for group in range(groups):
            places = dead[group].nonzero().squeeze(-1)
            vectors = samples[group][samples[group].norm(dim=-1) > 0.5]
            if places.numel() == 0 or vectors.shape[0] == 0:
                continue
            fit = (vectors @ self.centroids[group].to(vectors.dtype).T).amax(-1)
            worst = fit.argsort(stable=True)[: places.numel()]
            places = places[: worst.numel()]
            self.centroids[group, places] = vectors[worst].to(self.centroids.dtype)
            self.share[group, places] = 1.0 / clusters
            self.bias[group, places] = 0.0

    def telemetry(self) -> dict[str, float]:
        """occupancy_entropy (1 = even), dead_clusters (mean per head), centroid_drift (1 - cosine at the
        last update).
        """
        share = self.share.double()
        share = share / share.sum(1, keepdim=True)
        clusters = share.shape[1]
        entropy = -(share * share.clamp(min=1e-12).log()).sum(1).mean() / math.log(max(2, clusters))
        dead = (share < DEAD_SHARE / clusters).sum(1).double().mean()
        return {
            "occupancy_entropy": float(entropy),
            "dead_clusters": float(dead),
            "centroid_drift": float(self.drift),
        }

    def __getstate__(self) -> dict[str, Any]:
        """Without the statistics of an unfinished step: copies start clean."""
        state = super().__getstate__() if hasattr(super(), "__getstate__") else self.__dict__.copy()
        return {**state, "_sums": None, "_counts": None, "_samples": []}


def _first_centroids(samples: Tensor, clusters: int) -> Tensor:
    """[G, C, D] from samples [G, S, D]: far-apart vectors first, then Lloyd steps."""
    result = []
    for vectors in samples:
        vectors = vectors[vectors.norm(dim=-1) > 0.5]  # padding was zeroed
        chosen = [vectors.mean(0)]
        chosen[0] = vectors[(vectors @ chosen[0]).argmax()]
        nearest = vectors @ chosen[0]
        for _ in range(clusters - 1):
            chosen.append(vectors[nearest.argmin()])
            nearest = torch.maximum(nearest, vectors @ chosen[-1])
        mu = torch.stack(chosen)
        for _ in range(LLOYD_STEPS):
            member = F.one_hot((vectors @ mu.T).argmax(-1), clusters).to(vectors.dtype)
            sums = member.T @ vectors
            mu = torch.where((member.sum(0) > 0).unsqueeze(-1), F.normalize(sums, dim=-1), mu)
        result.append(mu)
    return torch.stack(result).to(torch.promote_types(samples.dtype, torch.float32))


def _canonical(samples: Tensor) -> Tensor:
    """[G, S, D] sorted by their first two coordinates, so that the order of ranks and micro-batches does
    not matter.
    """
    key = samples[..., 0].double() + 1e-3 * samples[..., -1].double()
    return samples.gather(1, key.argsort(1).unsqueeze(-1).expand_as(samples))


def _summed(x: Tensor) -> Tensor:
    """Sum over all ranks."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
    return x


def _gathered(x: Tensor) -> Tensor:
    """[G, S, D] of all ranks along S; ranks may differ in S."""
    if not (dist.is_available() and dist.is_initialized()):
        return x
    sizes = torch.zeros(dist.get_world_size(), dtype=torch.long, device=x.device)
    sizes[dist.get_rank()] = x.shape[1]
    dist.all_reduce(sizes)
    padded = F.pad(x, (0, 0, 0, int(sizes.max()) - x.shape[1])).contiguous()  # zero rows count as padding
    parts = [torch.empty_like(padded) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, padded)
    return torch.cat(parts, 1)
