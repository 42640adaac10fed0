"""Causal sums of features and values, plain, or with weights and decay given as logarithms."""

from typing import NamedTuple

import torch
from torch import Tensor

from mapformers.kernels.scan import STRETCH, Marks, scan

LOWEST = -1e30  # the level of nothing: finite, so that differences of levels are


class Keys(NamedTuple):
    """phi [B, H, M, F], values [B, H, M, E], and where given log_weight and log_decay [B, H, M], as in plans.

    exponents [F, D]: phi is [B, H, M, D] and stands for exp(exponents phi).
    A hidden key has values of 0 or the log-weight -inf, and decay 0.
    """

    phi: Tensor
    values: Tensor
    log_weight: Tensor | None = None
    log_decay: Tensor | None = None
    exponents: Tensor | None = None

    def of(self, row: int, members: Tensor) -> "Keys":
        """Some of the keys of one batch row."""
        phi, values = (x[row : row + 1, :, members] for x in (self.phi, self.values))
        weight, decay = (
            None if x is None else x[row : row + 1, :, members] for x in (self.log_weight, self.log_decay)
        )
        return Keys(phi, values, weight, decay, self.exponents)


class Sums(NamedTuple):
    """What causal sums carry on: exp(level) times sums [B, H, F, E], level [B, H]."""

    sums: Tensor
    level: Tensor

    @classmethod
    def empty(cls, keys: Keys) -> "Sums":
        """Nothing seen."""
        phi = keys.phi
        features = phi.shape[-1] if keys.exponents is None else keys.exponents.shape[0]
        return cls(
            phi.new_zeros(*phi.shape[:2], features, keys.values.shape[-1]),
            phi.new_full(phi.shape[:2], LOWEST),
        )


class Summed(NamedTuple):
    """y [B, H, N, E], which the query's sum is exp(level) times; level [B, H, N], None = 0; carried on."""

    y: Tensor
    level: Tensor | None
    carried: Sums


def causal_feature_sums(phi_q: Tensor, keys: Keys, carried: Sums) -> Summed:
    """sum_{j <= i} phi_q[i] . phi_k[j] exp(log_weight[j] + log_decay[j+1] + .. + log_decay[i]) values[j].

    Levels are running maxima over the keys so far.
    """
    pairs = phi_q.shape[:2]
    flat = [x.flatten(0, 1) for x in (phi_q, keys.phi, keys.values, carried.sums)]
    if keys.log_weight is None and keys.log_decay is None and keys.exponents is None:
        plain = scan(*flat)
        return Summed(plain.y.unflatten(0, pairs), None, Sums(plain.sums.unflatten(0, pairs), carried.level))
    weight = keys.phi.new_zeros(keys.phi.shape[:3]) if keys.log_weight is None else keys.log_weight
    decay = torch.zeros_like(weight) if keys.log_decay is None else keys.log_decay
    faded = torch.cat([part.cumsum(-1) for part in decay.flatten(0, 1).split(STRETCH, -1)], -1)
    marks = Marks(weight.flatten(0, 1) - faded, faded, carried.level.flatten())
    y, top, *after = scan(*flat, marks, keys.exponents)
    assert top is not None
    return Summed(
        y.unflatten(0, pairs),
        (top + faded).unflatten(0, pairs),
        Sums(*(x.unflatten(0, pairs) for x in after if x is not None)),
    )
