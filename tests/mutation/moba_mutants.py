"""Bugs in the choice of blocks and in what is pooled over them."""

from tests.mutation.mutant import Mutant

MOBA = ("tests/mechanisms/test_moba.py",)
MOBA_MUTANTS = (
    Mutant(
        "the own block competes with its mean, which knows the future",
        "mechanisms/content/moba.py",
        "past = Reach(mine.first, mine.own)",
        "past = Reach(mine.first, mine.own + 1)",
        ("tests/contract/test_causality.py",),
        "moba",
    ),
    Mutant(
        "blocks of another document compete",
        "mechanisms/content/moba.py",
        "past = Reach(mine.first, mine.own)",
        "past = Reach(torch.zeros_like(mine.first), mine.own)",
        ("tests/contract/test_documents.py",),
        "moba",
    ),
    Mutant(
        "means count padding",
        "mechanisms/content/blocks.py",
        "self.own if key_is_real is None else self.own.masked_fill(~key_is_real, -1)",
        "self.own",
        ("tests/contract/test_padding.py",),
        "moba",
    ),
    Mutant(
        "the sum of a block instead of its mean",
        "mechanisms/content/blocks.py",
        "return total / count.clamp(min=1)",
        "return total",
        ("tests/contract/test_parity.py",),
        "moba",
    ),
    Mutant(
        "the compressed branch sees its own block before it is complete",
        "mechanisms/content/blocks.py",
        "return mine.first, (mine.own + whole.long()).cummax(1).values",
        "return mine.first, mine.own + 1",
        ("tests/contract/test_causality.py", "tests/contract/test_parity.py"),
        "nsa",
    ),
    Mutant(
        "gates of another branch",
        "kernels/run.py",
        "zip(parts, weights, strict=True))",
        "zip(parts, weights[::-1], strict=True))",
        ("tests/kernels/test_plans.py",),
        "weighted",
    ),
    Mutant(
        "keys of no row fall into the first",
        "kernels/pooled.py",
        "torch.where(row < 0, count, row)",
        "row.clamp(min=0)",
        ("tests/kernels/test_plans.py",),
        "pooled",
    ),
)
