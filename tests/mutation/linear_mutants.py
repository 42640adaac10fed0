"""Bugs in random features, their levels, gates and what is drawn anew."""

from tests.mutation.mutant import Mutant

FEATURES = ("tests/kernels/test_features.py",)
PERFORMER = ("tests/mechanisms/test_performer.py",)
RANDOM = ("tests/mechanisms/test_random_features.py",)
RFA = ("tests/mechanisms/test_rfa.py",)
LINEAR_MUTANTS = (
    Mutant(
        "the level is a maximum over later keys too",
        "kernels/scan_tile.py",
        "top = torch.maximum(mark.cummax(-1).values, level[:, None])",
        "top = torch.maximum(mark.amax(-1, keepdim=True).expand_as(mark), level[:, None])",
        (*FEATURES, *PERFORMER),
        "any_size or resampled",
    ),
    Mutant(
        "sums are carried on without their level",
        "kernels/scan_tile.py",
        "levels[:, None, :] - levels[:, :, None]).clamp_(max=0)",
        "levels[:, None, :] - levels[:, :, None]).mul_(0)",
        FEATURES,
        "matrix",
    ),
    Mutant(
        "decay gets no gradient from what was carried",
        "kernels/scan.py",
        "                    on_faded[rows, time.stop - 1] = of_height\n",
        "",
        FEATURES,
        "matrix",
    ),
    Mutant(
        "rotations as LAPACK leaves them",
        "mechanisms/linear/random_features.py",
        "    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)\n",
        "",
        RANDOM,
        "leans",
    ),
    Mutant(
        "the norm of a key is forgotten",
        "mechanisms/linear/performer.py",
        "log_weight_k=-k.square().sum(-1) / 2",
        "log_weight_k=None",
        PERFORMER,
        "hand",
    ),
    Mutant(
        "rows are drawn anew in evaluation",
        "mechanisms/linear/random_features.py",
        "if not self.training:",
        "if False:",
        ("tests/contract/test_state.py",),
        "changes_no_buffer and performer",
    ),
    Mutant(
        "the gate weighs keys by itself, not by its rest",
        "mechanisms/linear/rfa.py",
        "return F.logsigmoid(-score), F.logsigmoid(score)",
        "return F.logsigmoid(score), F.logsigmoid(score)",
        RFA,
        "recurrence",
    ),
)
