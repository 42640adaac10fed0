"""Bugs in what Informer samples, in which rows attend, and in its distilling."""

from tests.mutation.mutant import Mutant

INFORMER = ("tests/mechanisms/test_informer.py",)
INFORMER_MUTANTS = (
    Mutant(
        "the samples reach into the future",
        "mechanisms/prototypes/sampled_keys.py",
        "pool = rank + 1 if past else length",
        "pool = length",
        INFORMER,
        "samples or prefix",
    ),
    Mutant(
        "padding is sampled",
        "mechanisms/prototypes/sampled_keys.py",
        "order = (~real).long().argsort(dim=1, stable=True)",
        "order = torch.arange(m, device=device).expand(len(real), -1)",
        INFORMER,
        "samples or padding",
    ),
    Mutant(
        "the mean is over all keys, as in the published code",
        "mechanisms/prototypes/sampled_keys.py",
        "total / sampled.count[:, None].clamp(min=1)",
        "total / k.shape[2]",
        INFORMER,
        "few_rows",
    ),
    Mutant(
        "documents compete for rows",
        "mechanisms/prototypes/chosen_rows.py",
        "sampled.count, scope.segments)",
        "sampled.count, None)",
        INFORMER,
        "compete",
    ),
    Mutant(
        "the threshold learns from padding",
        "mechanisms/prototypes/sampled_keys.py",
        "    real = torch.ones_like(share, dtype=torch.bool) if is_real is None else is_real[:, rows]\n",
        "    real = torch.ones_like(share, dtype=torch.bool)\n",
        INFORMER,
        "padding_does_not_move",
    ),
    Mutant(
        "padding wins the maximum of distilling",
        "blocks/distilling.py",
        'masked_fill(~real.unsqueeze(1), float("-inf"))',
        "masked_fill(~real.unsqueeze(1), 0.0)",
        ("tests/blocks/test_distilling.py",),
        "padding_on_any_side",
    ),
)
