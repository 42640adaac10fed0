"""A stack of reversible blocks that keeps no activations: the backward restores them from the last ones.

Kept are the two streams behind the last block and, of every block, the seeds of its dropout and the choices
of its attention (cluster or bucket of each token; nothing for patterns by position). So dropout falls on the
same places again, and rounding moves no token to another bucket. Statistics for centroids are gathered in
the forward alone: a forward inside a backward gathers none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mapformers.attention.choices import Choices
from mapformers.blocks.reversible import ReversibleBlock, Streams
from mapformers.core.carry import Carry
from mapformers.core.errors import require

Gradients = dict[nn.Parameter, Tensor]


class ReversibleStack(nn.Module):
    """Reversible blocks one after another: (x, carry) -> (x, carry), as each of them."""

    def __init__(self, blocks: Sequence[ReversibleBlock]) -> None:
        super().__init__()
        require(len(blocks) > 0, "reversible: a stack must have 1 block or more, got none; add blocks")
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """x [B, N, dim] through all blocks; its memory does not grow with their number."""
        return run_reversible(list(self.blocks), x, carry)  # type: ignore[arg-type]


def run_reversible(blocks: Sequence[ReversibleBlock], x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
    """x [B, N, dim] through the blocks, with the outputs and gradients of calling one after the other."""
    if not torch.is_grad_enabled():
        for block in blocks:
            x, carry = block(x, carry)
        return x, carry
    call = _Call(blocks, carry, x.device.type)
    first, second, *losses = _Restored.apply(call, *Streams.of(x, carry), *call.parameters)
    return Streams(first, second).into(carry.add_losses(dict(zip(call.loss_names, losses, strict=True))))


class _Restored(torch.autograd.Function):
    """The streams and the losses by name behind the blocks of a call."""

    @staticmethod
    def forward(ctx: Any, call: _Call, first: Tensor, second: Tensor, *parameters: Tensor) -> Any:
        streams, losses = call.forth(Streams(first, second))
        ctx.call = call
        ctx.save_for_backward(*streams)
        return *streams, *losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, first: Tensor, second: Tensor, *losses: Tensor) -> Any:
        streams, found = ctx.call.back(Streams(*ctx.saved_tensors), Streams(first, second), losses)
        return None, *streams, *(found.get(parameter) for parameter in ctx.call.parameters)


class _Call:
    """One run through the blocks: what their backward must know besides the last streams."""

    def __init__(self, blocks: Sequence[ReversibleBlock], carry: Carry, device_type: str) -> None:
        self.passes = [_Pass(block) for block in blocks]
        self.scope = Carry(carry.key_is_real, carry.segments, carry.positions)
        wanted = [p for block in blocks for p in block.parameters() if p.requires_grad]
        self.parameters = list(dict.fromkeys(wanted))
        self.loss_names: list[str] = []
        self.device_type = device_type
        self.autocast = (
            torch.is_autocast_enabled(device_type),
            torch.get_autocast_dtype(device_type),
        )

    def forth(self, streams: Streams) -> tuple[Streams, list[Tensor]]:
        """The streams behind all blocks, and the losses in the order of `loss_names`."""
        total = Carry()
        for one in self.passes:
            streams, losses = one.forth(streams, self.scope)
            total = total.add_losses(losses)
        self.loss_names = list(total.losses)
        return streams, list(total.losses.values())

    def back(
        self, streams: Streams, gradient: Streams, losses: Sequence[Tensor]
    ) -> tuple[Streams, Gradients]:
        """The gradients of the first streams and of the parameters, from those of the last streams."""
        of_losses = dict(zip(self.loss_names, losses, strict=True))
        found: Gradients = {}
        enabled, dtype = self.autocast
        with torch.autocast(self.device_type, dtype=dtype, enabled=enabled):
            for one in reversed(self.passes):
                streams, gradient = one.back(streams, gradient, of_losses, self.scope, found)
        return gradient, found


class _Pass:
    """One block in a call."""

    def __init__(self, block: ReversibleBlock) -> None:
        self.block, self.choices, self.seeds = block, Choices(), block.draw_seeds()

    def forth(self, streams: Streams, scope: Carry) -> tuple[Streams, dict[str, Tensor]]:
        """The streams behind the block, and its losses."""
        attended, losses = self.block.attend(streams.second, scope, self.seeds.attention, self.choices)
        first = streams.first + attended
        return Streams(first, streams.second + self.block.feed(first, self.seeds.feed)), losses

    def back(
        self,
        streams: Streams,
        gradient: Streams,
        of_losses: dict[str, Tensor],
        scope: Carry,
        found: Gradients,
    ) -> tuple[Streams, Streams]:
        """The streams before the block and their gradients; those of parameters are added to `found`."""
        block = self.block
        leaf = streams.first.detach().requires_grad_()
        with torch.enable_grad():
            fed = block.feed(leaf, self.seeds.feed)
        second = (streams.second - fed.detach()).requires_grad_()
        through = _gradients(
            [(fed, gradient.second)], leaf, (block.feed_forward_norm, block.feed_forward), found
        )
        of_first = gradient.first + through
        del leaf, fed
        with torch.enable_grad():
            attended, losses = block.attend(second, scope, self.seeds.attention, self.choices.again())
        first = streams.first - attended.detach()
        pairs = [(attended, of_first), *((loss, of_losses[name]) for name, loss in losses.items())]
        through = _gradients(pairs, second, (block.attention_norm, block.attention), found)
        return Streams(first, second.detach()), Streams(of_first, gradient.second + through)


def _gradients(
    pairs: list[tuple[Tensor, Tensor]], leaf: Tensor, modules: tuple[nn.Module, ...], found: Gradients
) -> Tensor:
    """The gradient of `leaf` from outputs and their gradients; parameters' gradients go to `found`."""
    pairs = [(output, gradient.to(output.dtype)) for output, gradient in pairs if output.requires_grad]
    wanted = [p for module in modules for p in module.parameters() if p.requires_grad]
    outputs, gradients = zip(*pairs, strict=True)
    of_leaf, *of_wanted = torch.autograd.grad(outputs, [leaf, *wanted], gradients, allow_unused=True)
    for parameter, gradient in zip(wanted, of_wanted, strict=True):
        if gradient is not None:
            found[parameter] = found[parameter] + gradient if parameter in found else gradient
    return torch.zeros_like(leaf) if of_leaf is None else of_leaf
