"""Bugs in the choice of blocks."""

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
        "torch.where(real[:, None, :, None], k.double(), 0.0)",
        "k.double()",
        ("tests/contract/test_padding.py",),
        "moba",
    ),
    Mutant(
        "the sum of a block instead of its mean",
        "mechanisms/content/blocks.py",
        "return total / count.clamp(min=1)[:, None, :, None]",
        "return total",
        ("tests/contract/test_parity.py",),
        "moba",
    ),
)
