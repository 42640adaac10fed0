"""The checks of an audit: inputs are changed where they must not matter, and outputs are compared."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mapformers.audit.inputs import Draw
from mapformers.audit.report import GRADIENT, Check
from mapformers.audit.subject import LIMITS, Subject

KINDS = ("random", "clustered", "duplicated")


def future(run: Subject, draw: Draw) -> Iterator[Check]:
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
                f"{moved:.0%} of the earlier positions moved when the {what} changed",
            )


def gradient(run: Subject, draw: Draw) -> Check | str:
    """The derivatives of outputs by later inputs must be exactly 0. Text: why they could not be taken."""
    if draw.vocab is not None:
        return "gradient: not checked, token ids have no derivative"
    x, worst = draw(run.dtype).requires_grad_(), 0.0
    try:
        y = run(x)
        if not y.requires_grad:
            return "gradient: not checked, the outputs have no derivative"
        # A layer norm makes plain sums of outputs constant: weigh them.
        weight = torch.randn(y.shape[-1], generator=draw.generator, dtype=torch.float64).to(y.dtype)
        for i in (0, draw.length // 2, draw.length - 2):
            (by,) = torch.autograd.grad((y[:, i] * weight).sum(), x, retain_graph=True, allow_unused=True)
            if by is not None:
                worst = max(worst, run.difference(by[:, i + 1 :], torch.zeros_like(by[:, i + 1 :])))
    except (RuntimeError, TypeError) as error:  # of somebody's own backward, in eval mode
        return f"gradient: not checked, the module cannot be differentiated in eval mode ({error})"
    return run.check(GRADIENT, worst, "largest derivative of an output by a later input", limit=0.0)


def padding(run: Subject, draw: Draw) -> list[Check]:
    """What stands in padding, left or right, must not matter to real outputs."""
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


def batch_rows(run: Subject, draw: Draw) -> Check:
    """A row alone and in a batch, beside quiet and loud rows."""
    x = draw(run.dtype)
    with torch.no_grad():
        alone, together = run(x[:1]), run(x)[:1]
        loud = run(torch.cat([x[:1], x[1:] if draw.vocab else 100 * x[1:]]))[:1]
    worst = max(run.difference(together, alone), run.difference(loud, alone))
    return run.check("batch: a row alone", worst, "change of a row's outputs when other rows join the batch")


def determinism(run: Subject, draw: Draw) -> Check:
    """Two calls with the same input, with whatever randomness the module draws."""
    x = draw(run.dtype)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        first, second = run.call(x, None), run.call(x, None)
    return run.check(
        "determinism: same input twice",
        run.difference(second, first),
        "change of the outputs between two calls",
    )


def state(run: Subject, draw: Draw) -> list[Check]:
    """A forward in eval mode must leave parameters and buffers alone. No row for functions."""
    if run.module is None:
        return []
    before = {name: tensor.detach().clone() for name, tensor in run.module.state_dict().items()}
    with torch.no_grad():
        run(draw(run.dtype))
    after = run.module.state_dict()
    changed = [n for n, t in before.items() if n not in after or not torch.equal(after[n], t)]
    meaning = f"buffers that a forward in eval mode changed: {', '.join(changed[:3]) or 'none'}"
    return [run.check("state: eval changes no buffer", float(len(changed)), meaning, limit=0.0)]


def decoding(run: Subject, draw: Draw) -> Check:
    """Stepping against the whole sequence, for subjects that decode."""
    assert run.decode is not None
    x = draw(run.dtype)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        stepped = run.decode(x)
    worst = run.difference(stepped, run(x).detach())
    return run.check(
        "decode: token by token", worst, "difference between stepping and the whole sequence at once"
    )
