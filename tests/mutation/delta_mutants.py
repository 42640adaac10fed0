"""Bugs in the delta rule: its map, its chunks and what they carry."""

from tests.mutation.mutant import Mutant

CHUNKS, BY_HAND = ("tests/kernels/test_delta.py",), ("tests/mechanisms/test_delta.py",)
DELTA_MUTANTS = (
    Mutant(
        "features are not divided by their sum",
        "mechanisms/linear/delta.py",
        "return found / total.masked_fill(total < torch.finfo(total.dtype).tiny, 1.0)",
        "return found / total.amax().clamp(min=torch.finfo(total.dtype).tiny)",
        BY_HAND,
        "recurrence",
    ),
    Mutant(
        "neighbours are taken from the other side",
        "mechanisms/linear/delta.py",
        "parts.roll(j, -1)",
        "parts.roll(-j, -1)",
        BY_HAND,
        "hand",
    ),
    Mutant(
        "keys of a chunk do not correct each other",
        "kernels/delta.py",
        "self.earlier = (self.k @ self.k.mT).tril_(-1)",
        "self.earlier = torch.zeros_like(self.k @ self.k.mT)",
        CHUNKS,
        "recurrence",
    ),
    Mutant(
        "a stretch begins with the matrix behind it",
        "kernels/delta.py",
        "                ctx.carried[-1].append(before)\n",
        "                ctx.carried[-1].append(sums[rows])\n",
        CHUNKS,
        "recurrence",
    ),
    Mutant(
        "padding is written",
        "kernels/delta.py",
        "plan.beta if scope.key_is_real is None else",
        "plan.beta if True else",
        CHUNKS,
        "padding",
    ),
    Mutant(
        "a step forgets what was written",
        "attention/state.py",
        "beta, new.v, self.matrix)",
        "beta, new.v, None)",
        ("tests/contract/test_decode.py",),
        "delta and parallel_form",
    ),
)
