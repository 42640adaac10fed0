"""Counting, the same on every machine: what a call multiplies, and its highest memory."""

import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class PeakMemory(TorchDispatchMode):
    """Bytes of all tensor storages made inside the block that are alive at once, at their highest."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()

    def _gone(self, size: int) -> None:
        self.alive -= size

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return out

    def _add(self, storage: Any) -> None:
        if storage not in self._known:
            self._known[storage] = None
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._gone, storage.nbytes())


def flops(call: Callable[[], Tensor]) -> int:
    """Floating point operations of the matrix products in a call, those inside SDPA too."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()


def peak_bytes(call: Callable[[], Tensor]) -> int:
    """Highest memory of a forward and backward."""
    with PeakMemory() as memory:
        call().square().sum().backward()
    return memory.peak


def exponent(small: float, large: float, factor: float) -> float:
    """The p of a growth by factor^p."""
    return math.log(large / small) / math.log(factor)
