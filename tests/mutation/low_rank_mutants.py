"""Bugs in landmarks, their inverse and what goes through them."""

from tests.mutation.mutant import Mutant

NYSTROM = ("tests/mechanisms/test_nystrom.py",)
LOW_RANK_MUTANTS = (
    Mutant(
        "the inverse starts from the whole batch",
        "mechanisms/low_rank/nystrom.py",
        "norm = a.sum(-1).amax(-1) * a.sum(-2).amax(-1)",
        "norm = (a.sum(-1).amax() * a.sum(-2).amax()).expand(a.shape[:-2])",
        NYSTROM,
        "know",
    ),
    Mutant(
        "padding counts for landmarks",
        "mechanisms/low_rank/landmarks.py",
        "    row = row.masked_fill(~real, -1)\n",
        "",
        NYSTROM,
        "padding or landmark",
    ),
    Mutant(
        "padding is a step of the convolution",
        "kernels/taps.py",
        "if scope.key_is_real is not None:",
        "if False:",
        NYSTROM,
        "padding",
    ),
    Mutant(
        "the identity is not added",
        "mechanisms/low_rank/csalr.py",
        "parts.between + self.config.scale * one",
        "parts.between + 1e-3 * one",
        ("tests/mechanisms/test_csalr.py",),
        "half",
    ),
    Mutant(
        "scores of few dimensions are scaled as if they had all",
        "kernels/dense.py",
        "        dim = q.shape[-1]\n",
        "",
        ("tests/mechanisms/test_low_rank_band.py",),
    ),
)
