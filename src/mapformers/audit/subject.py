"""What is audited, as one call on tokens: our layers and blocks, and anybody's modules and functions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mapformers.attention.multi_head import MultiHeadAttention
from mapformers.audit.inputs import Draw
from mapformers.audit.report import Check
from mapformers.blocks.base import Block
from mapformers.core.carry import Carry
from mapformers.core.errors import MapformersError, require

LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}  # of a change, relative to the largest output
Call = Callable[[Tensor, Tensor | None], Tensor]
Step = Callable[[Tensor, Any], tuple[Tensor, Any]]


@dataclass
class Subject:
    """How to call what is audited."""

    module: nn.Module | None
    call: Call
    decode: Callable[[Tensor], Tensor] | None
    padding: bool
    dim: int | None
    dtype: torch.dtype = torch.float32

    def __call__(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """One forward; every one starts from the same global random state and leaves it as it was."""
        with torch.random.fork_rng(devices=[]):
            return self.call(x, real)

    def difference(self, a: Tensor, b: Tensor) -> float:
        """Largest change, relative to the largest output. Whatever is not finite counts as infinite."""
        scale = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
        change = float((a - b).detach().abs().max()) if a.numel() else 0.0
        return change / scale if change == change else float("inf")

    def check(self, name: str, measured: float, meaning: str, limit: float | None = None) -> Check:
        """A row; the limit is that of the data type unless given."""
        bound = LIMITS[self.dtype] if limit is None else limit
        return Check(name, measured <= bound, measured, bound, meaning)


def adapt(subject: nn.Module | Callable[..., Any], mask: str | None, decode: Step | None) -> Subject:
    """The audited thing as one call, on a copy where it is a module."""
    if not isinstance(subject, nn.Module):
        require(
            callable(subject), f"audit: subject must be callable, got {type(subject).__name__}; pass a module"
        )
        return Subject(None, _plain(subject, mask), _stepping(decode), mask is not None, None)
    try:
        module = copy.deepcopy(subject).eval()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise MapformersError(
            f"audit: module must allow copy.deepcopy, got {type(subject).__name__}: {error}; "
            "wrap it in a function"
        ) from error
    if isinstance(module, MultiHeadAttention):
        padding = all("padding" in m.card.supports for m in module.mechanisms)  # type: ignore[union-attr, operator]
        step = _stepping(module.step, module) if module.options.causal and _decodes(module) else None
        return Subject(module, lambda x, real: module(x, key_is_real=real), step, padding, module.sizes.dim)
    if isinstance(module, Block):
        inner = next((m for m in module.modules() if isinstance(m, MultiHeadAttention)), None)
        dim = getattr(module, "dim", None) if inner is None else inner.sizes.dim

        def block_step(x: Tensor, state: Any) -> tuple[Tensor, Any]:
            y, _, state = module.step(x, Carry(), state)
            return y, state

        causal = inner is None or inner.options.causal
        step = _stepping(block_step, module) if causal and _decodes(module) else None
        padding = "padding" in module.card.supports
        call: Call = lambda x, real: module(x, Carry(key_is_real=real))[0]  # noqa: E731
        return Subject(module, call, step, padding, dim)
    return Subject(module, _plain(module, mask), _stepping(decode), mask is not None, None)


def _plain(subject: Callable[..., Any], mask: str | None) -> Call:
    def call(x: Tensor, real: Tensor | None) -> Tensor:
        if mask is None:
            return _tensor(subject(x))
        real = torch.ones(x.shape[:2], dtype=torch.bool) if real is None else real
        return _tensor(subject(x, **{mask: real}))

    return call


def _tensor(output: Any) -> Tensor:
    """The tensor [B, N, ..] of whatever a module returns."""
    for name in ("logits", "last_hidden_state"):
        output = getattr(output, name, output)
    if isinstance(output, tuple | list) and output:
        output = output[0]
    require(
        isinstance(output, Tensor) and output.dim() >= 3,
        f"audit: output must be a tensor [batch, tokens, ..], got {type(output).__name__}; "
        "wrap it in a function",
    )
    assert isinstance(output, Tensor)
    return output


def _stepping(step: Step | None, owner: Any = None) -> Callable[[Tensor], Tensor] | None:
    """Token by token through `step`, from the owner's empty state or None."""
    if step is None:
        return None

    def stepped(x: Tensor) -> Tensor:
        state = None if owner is None else owner.init_state(x.shape[0])
        outputs = []
        for t in range(x.shape[1]):
            y, state = step(x[:, t : t + 1], state)
            outputs.append(y)
        return torch.cat(outputs, 1)

    return stepped


def _decodes(module: Any) -> bool:
    try:
        module.init_state(1)
    except MapformersError:
        return False
    return True


def widest(subject: Subject, draw: Draw) -> Subject:
    """In float64 where the subject can, else in float32."""
    narrow = copy.deepcopy(subject.module.state_dict()) if subject.module is not None else {}
    for dtype in (torch.float64, torch.float32):
        subject.dtype = dtype
        if subject.module is not None:
            subject.module.to(dtype)
            if dtype == torch.float32:
                subject.module.load_state_dict(narrow)
        try:
            with torch.no_grad():
                y = subject(draw(dtype))
        except (RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, MapformersError) or dtype == torch.float32:
                raise MapformersError(
                    f"audit: subject cannot be called with [{draw.batch}, {draw.length}], got {error}; "
                    "check dim, vocab and length"
                ) from error
            continue
        require(
            y.shape[:2] == (draw.batch, draw.length),
            f"audit: output must keep batch and tokens ({draw.batch}, {draw.length}), got {tuple(y.shape)}; "
            "wrap it in a function that does",
        )
        if y.dtype != torch.float64:
            subject.dtype = torch.float32
        return subject
    raise AssertionError("unreachable")


def name_of(subject: Any) -> str:
    """What a report calls it."""
    if isinstance(subject, MultiHeadAttention):
        return " + ".join(m.card.name for m in subject.mechanisms)  # type: ignore[union-attr, misc]
    if isinstance(subject, Block):
        return subject.card.name
    return getattr(subject, "__name__", type(subject).__name__)
