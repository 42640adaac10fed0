"""The mechanism contract: one paper, one plan, one executable definition."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mapformers.core.card import Card
from mapformers.core.errors import require
from mapformers.core.plans import ByRows, Plan
from mapformers.core.scope import Scope


class Cost(NamedTuple):
    """What one forward call costs: flops (a multiply-add counts two) and bytes of extra memory in float32."""

    flops: float
    bytes: float


class Shape(NamedTuple):
    """The sizes a mechanism is bound to: query heads, key/value heads, head size."""

    heads: int
    kv_heads: int
    head_dim: int


class Mechanism(nn.Module):
    """Base of all mechanisms. Subclasses set `card` and `Config` and define `plan` and `dense_weights`.

    A mechanism may own parameters, made in `build`; it never owns projections. It is bound to its sizes once,
    by the layer that owns it or by the first call of `attend`.
    """

    card: ClassVar[Card]
    Config: ClassVar[type]
    # How it decodes. False: the plan of the new tokens says all (attention/state.py). True: `plan` is called
    # with the new queries and all keys so far, scope.query_start being the index of the first query.
    plans_from_history: ClassVar[bool] = False
    sees_all: ClassVar[bool] = False  # the plan is Dense()
    one_softmax: ClassVar[bool] = True  # False: a sum of several, whose weights have no log-sum-exp
    # What `losses` returns in training: losses, and log-probabilities of choices summed over the batch, to be
    # weighted by what the task's loss exceeds a baseline by (core/policy.py).
    loss_names: ClassVar[tuple[str, ...]] = ()
    policy_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.config = self.Config() if config is None else config
        self.shape: Shape | None = None

    @property
    def shares_qk(self) -> bool:
        """Whether queries serve as keys."""
        return False

    def check_cross(self) -> None:
        """Refuse queries that are other tokens than the keys, where this configuration cannot take them."""

    @property
    def mixes_queries(self) -> bool:
        """Whether the output of a query depends on the other queries: not for the context of a decoder."""
        return False

    @property
    def shared_over_layers(self) -> tuple[str, ...]:
        """Parameters that a model's layers have in common where their mechanisms have the same settings."""
        return ()

    @property
    def marks_rows(self) -> bool:
        """Whether `plan_by_rows` is defined: some queries may have projections of their own."""
        return False

    def check_causal(self, causal: bool) -> None:
        """Refuse a setting of `causal` that this configuration cannot honour strictly."""

    def can_decode(self) -> bool:
        """Whether this configuration decodes exactly, given that the card says so."""
        return True

    def bind(self, shape: Shape, generator: torch.Generator | None = None) -> Mechanism:
        """Fix the sizes and make the parameters, if any. Returns self.

        Raises MapformersError when it is bound to other sizes already.
        """
        if self.shape is None:
            self.build(shape, torch.Generator().manual_seed(0) if generator is None else generator)
            self.shape = shape
        require(
            self.shape == shape,
            f"{self.card.name}: sizes are fixed at {tuple(self.shape)}, got {tuple(shape)} "
            "(heads, key/value heads, head size); make another mechanism for them",
        )
        return self

    def build(self, shape: Shape, generator: torch.Generator) -> None:
        """Make parameters and buffers of these sizes. Mechanisms without any need not define it."""

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """Who sees whom. q [B, H, N, D] and k [B, H, M, D] before rotation; kernels see them rotated."""
        raise NotImplementedError(f"{type(self).__name__} must define plan(q, k, scope)")

    def plan_by_rows(self, q: Tensor, k: Tensor, scope: Scope) -> ByRows:
        """The same as two plans, where `marks_rows`. q and k are those of the first set.

        Asked for only when the projection has a second set.
        """
        raise NotImplementedError(f"{type(self).__name__} must define plan_by_rows(q, k, scope)")

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """[B, H, N, M] the definition, read straight off the formula. Slow: for tests and pictures."""
        raise NotImplementedError(f"{type(self).__name__} must define dense_weights(q, k, scope)")

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """Flops and extra bytes of one forward call, n queries and n keys of size `dim`."""
        raise NotImplementedError(f"{type(self).__name__} must define cost(...)")

    def losses(self, q: Tensor, k: Tensor, scope: Scope) -> dict[str, Tensor]:
        """Auxiliary losses by name, unweighted scalars. In training only."""
        return {}

    def observe(self, q: Tensor, k: Tensor, scope: Scope) -> None:
        """Gather statistics of this forward, without gradient. Called once per forward, in training only."""

    def update_centroids(self) -> None:
        """Move what is not learned by gradients. Called after the optimiser step."""

    def telemetry(self) -> dict[str, float]:
        """Numbers about the state of the mechanism, for logs."""
        return {}
