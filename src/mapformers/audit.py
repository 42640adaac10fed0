"""Audit a layer: does the future leak, does padding matter, do batch rows mix, does decoding agree?

Takes our layers and blocks, and anybody's nn.Module or function. Everything is measured: inputs are changed
where they must not matter, and the outputs that should stay are compared.
"""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mapformers.attention.multi_head import MultiHeadAttention
from mapformers.blocks.base import Block
from mapformers.core.carry import Carry
from mapformers.core.errors import MapformersError, require

LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}  # of a change, relative to the largest output
KINDS = ("random", "clustered", "duplicated")
COLUMNS = 80
Call = Callable[[Tensor, Tensor | None], Tensor]
Step = Callable[[Tensor, Any], tuple[Tensor, Any]]


@dataclass(frozen=True)
class Check:
    """One row of a report: measured must not exceed limit."""

    name: str
    passed: bool
    measured: float
    limit: float
    meaning: str


@dataclass(frozen=True)
class Report:
    """What an audit found. Prints as a table of 80 columns."""

    subject: str
    rows: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(row.passed for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"subject": self.subject, "passed": self.passed, "rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        failed = sum(not row.passed for row in self.rows)
        verdict = "passed" if failed == 0 else f"FAILED {failed} of {len(self.rows)} checks"
        lines = [textwrap.shorten(f"audit of {self.subject}: {verdict}", COLUMNS)]
        lines.append(f"{'check':<46}{'result':<7}{'measured':>13}{'limit':>13}")
        for row in self.rows:
            result = "ok" if row.passed else "FAILED"
            lines.append(f"{row.name:<46}{result:<7}{row.measured:>13.2e}{row.limit:>13.1e}")
            lines += textwrap.wrap(row.meaning, COLUMNS, initial_indent="    ", subsequent_indent="    ")
        return "\n".join(lines)


def audit(
    subject: nn.Module | Callable[..., Any],
    *,
    causal: bool = True,
    dim: int | None = None,
    vocab: int | None = None,
    length: int = 64,
    batch: int = 2,
    mask: str | None = None,
    decode: Step | None = None,
    seed: int = 0,
) -> Report:
    """Check a layer [B, N, dim] -> [B, N, dim], or a model of token ids [B, N] -> [B, N, vocab].

    subject   a layer of mf.attention, a block of mf.block, any nn.Module, or any function. An output that is
              a tuple or has `.logits` or `.last_hidden_state` counts by that tensor. Modules are copied, run
              in eval mode and in float64 where they can; the original and the global random state stay as
              they are
    causal    whether later tokens must not matter
    dim       width of the input; not needed for our own layers and blocks, nor with `vocab`
    vocab     the subject takes token ids below this number
    mask      name of the argument that takes a mask [B, N] bool, True = real; None = takes no padding
    decode    step(x [B, 1, ..], state or None) -> (y [B, 1, ..], state), to compare token by token with the
              whole; not needed for our own layers
    Raises MapformersError where the subject cannot be called like that.
    """
    require(length >= 4, f"audit: length must be 4 or more, got {length}; use 64")
    require(batch >= 2, f"audit: batch must be 2 or more, got {batch}; use 2")
    adapted = _adapt(subject, mask, decode)
    width = adapted.dim if dim is None else dim
    require(
        width is not None or vocab is not None,
        "audit: dim must be given for a module that is not ours, got none; pass dim= or vocab=",
    )
    draw = _Draw(width or 0, vocab, length, batch, torch.Generator().manual_seed(seed))
    run = _widest(adapted, draw)
    rows = [*_future(run, draw)] if causal else []
    if adapted.padding:
        rows += _padding(run, draw)
    rows += [_batch(run, draw), _determinism(run, draw), *_state(run, draw)]
    if causal and adapted.decode is not None:
        rows.append(_decoding(run, draw))
    return Report(_name(subject), tuple(rows))


@dataclass
class _Subject:
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
        bound = LIMITS[self.dtype] if limit is None else limit
        return Check(name, measured <= bound, measured, bound, meaning)


@dataclass(frozen=True)
class _Draw:
    """Inputs of the right kind: vectors [B, N, dim], or token ids [B, N]."""

    dim: int
    vocab: int | None
    length: int
    batch: int
    generator: torch.Generator

    def __call__(self, dtype: torch.dtype, kind: str = "random") -> Tensor:
        shape = (self.batch, self.length)
        if self.vocab is not None:
            known = self.vocab if kind == "random" else min(4, self.vocab)
            return torch.randint(0, known, shape, generator=self.generator)
        noise = torch.randn((*shape, self.dim), generator=self.generator, dtype=torch.float64)
        if kind != "random":
            centres = torch.randn((4, self.dim), generator=self.generator, dtype=torch.float64)
            rows = centres[torch.randint(0, 4, shape, generator=self.generator)]
            noise = rows + (0.05 * noise if kind == "clustered" else 0)
        return noise.to(dtype)

    def others(self, x: Tensor, cut: int) -> Iterator[Tensor]:
        """x with other tokens from `cut` on: fresh ones, and louder copies of the past."""
        if self.vocab is not None:
            for _ in range(2):
                shift = torch.randint(1, max(2, self.vocab), x[:, cut:].shape, generator=self.generator)
                yield torch.cat([x[:, :cut], (x[:, cut:] + shift) % self.vocab], 1)
            return
        order = torch.randint(0, cut, (x.shape[1] - cut,), generator=self.generator)
        fresh = torch.randn(x[:, cut:].shape, generator=self.generator, dtype=torch.float64).to(x.dtype)
        for later in (fresh, 10 * x[:, order], -3 * x[:, cut:]):
            yield torch.cat([x[:, :cut], later], 1)


def _future(run: _Subject, draw: _Draw) -> Iterator[Check]:
    """Later tokens change; earlier outputs must not."""
    for what, cut in (("last token", draw.length - 1), ("second half", draw.length // 2)):
        for kind in KINDS:
            x = draw(run.dtype, kind)
            with torch.no_grad():
                before = run(x)[:, :cut]
                changed = [run(y)[:, :cut] for y in draw.others(x, cut)]
            worst = max(run.difference(after, before) for after in changed)
            scale = max(1.0, float(before.abs().max()))
            moved = max(
                float(
                    ((after - before).abs().flatten(2).amax(-1) > LIMITS[run.dtype] * scale).double().mean()
                )
                for after in changed
            )
            yield run.check(
                f"future: {what} changed, {kind} input",
                worst,
                f"{moved:.0%} of the earlier positions moved when the {what} changed; largest change "
                "relative to the largest output",
            )
    if draw.vocab is None:
        yield from _gradient(run, draw)


def _gradient(run: _Subject, draw: _Draw) -> Iterator[Check]:
    x = draw(run.dtype).requires_grad_()
    y = run(x)
    if not y.requires_grad:
        return
    # A layer norm makes plain sums of outputs constant: weigh them.
    weight = torch.randn(y.shape[-1], generator=draw.generator, dtype=torch.float64).to(y.dtype)
    worst = 0.0
    for i in (0, draw.length // 2, draw.length - 2):
        (gradient,) = torch.autograd.grad((y[:, i] * weight).sum(), x, retain_graph=True, allow_unused=True)
        if gradient is not None:
            worst = max(worst, run.difference(gradient[:, i + 1 :], torch.zeros_like(gradient[:, i + 1 :])))
    yield run.check("future: gradient", worst, "largest derivative of an output by a later input", limit=0.0)


def _padding(run: _Subject, draw: _Draw) -> list[Check]:
    rows = []
    count = draw.length // 4
    for side in ("left", "right"):
        real = torch.ones(draw.batch, draw.length, dtype=torch.bool)
        real[1:, slice(0, count) if side == "left" else slice(draw.length - count, None)] = False
        x, worst = draw(run.dtype), 0.0
        with torch.no_grad():
            before = run(x, real)[real]
            for other in (draw(run.dtype), draw(run.dtype, "duplicated") * (1 if draw.vocab else 1000)):
                y = torch.where(real if draw.vocab else real.unsqueeze(-1), x, other)
                worst = max(worst, run.difference(run(y, real)[real], before))
        rows.append(
            run.check(f"padding: content, {side}", worst, "change of real outputs when only padding changes")
        )
    return rows


def _batch(run: _Subject, draw: _Draw) -> Check:
    x = draw(run.dtype)
    with torch.no_grad():
        alone, together = run(x[:1]), run(x)[:1]
        loud = run(torch.cat([x[:1], x[1:] if draw.vocab else 100 * x[1:]]))[:1]
    worst = max(run.difference(together, alone), run.difference(loud, alone))
    return run.check("batch: a row alone", worst, "change of a row's outputs when other rows join the batch")


def _determinism(run: _Subject, draw: _Draw) -> Check:
    x = draw(run.dtype)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        first, second = run.call(x, None), run.call(x, None)
    return run.check(
        "determinism: same input twice",
        run.difference(second, first),
        "change of the outputs between two calls",
    )


def _state(run: _Subject, draw: _Draw) -> list[Check]:
    if run.module is None:
        return []
    before = {name: tensor.detach().clone() for name, tensor in run.module.state_dict().items()}
    with torch.no_grad():
        run(draw(run.dtype))
    after = run.module.state_dict()
    changed = [n for n, t in before.items() if n not in after or not torch.equal(after[n], t)]
    meaning = f"buffers that a forward in eval mode changed: {', '.join(changed[:3]) or 'none'}"
    return [run.check("state: eval changes no buffer", float(len(changed)), meaning, limit=0.0)]


def _decoding(run: _Subject, draw: _Draw) -> Check:
    assert run.decode is not None
    x = draw(run.dtype)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        stepped = run.decode(x)
    worst = run.difference(stepped, run(x).detach())
    return run.check(
        "decode: token by token", worst, "difference between stepping and the whole sequence at once"
    )


def _adapt(subject: nn.Module | Callable[..., Any], mask: str | None, decode: Step | None) -> _Subject:
    """The audited thing as one call, on a copy where it is a module."""
    if not isinstance(subject, nn.Module):
        require(
            callable(subject), f"audit: subject must be callable, got {type(subject).__name__}; pass a module"
        )
        return _Subject(None, _plain(subject, mask), _stepping(decode), mask is not None, None)
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
        return _Subject(module, lambda x, real: module(x, key_is_real=real), step, padding, module.sizes.dim)
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
        return _Subject(module, call, step, padding, dim)
    return _Subject(module, _plain(module, mask), _stepping(decode), mask is not None, None)


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


def _widest(subject: _Subject, draw: _Draw) -> _Subject:
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


def _name(subject: Any) -> str:
    if isinstance(subject, MultiHeadAttention):
        return " + ".join(m.card.name for m in subject.mechanisms)  # type: ignore[union-attr, misc]
    if isinstance(subject, Block):
        return subject.card.name
    return getattr(subject, "__name__", type(subject).__name__)
