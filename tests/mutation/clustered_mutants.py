"""Bugs in clusters of queries."""

from tests.mutation.mutant import Mutant

CLUSTERED = ("tests/mechanisms/test_clustered.py",)
CLUSTERED_MUTANTS = (
    Mutant(
        "padding votes for the bits of a cluster",
        "mechanisms/prototypes/hamming.py",
        "voters = bits * real[:, None, :, None]",
        "voters = bits",
        CLUSTERED,
        "no_vote",
    ),
    Mutant(
        "a cluster for each query only where queries are fewer",
        "mechanisms/prototypes/hamming.py",
        "total <= count",
        "total < count",
        CLUSTERED,
        "cluster_for_each",
    ),
    Mutant(
        "members score all the mass for themselves",
        "mechanisms/prototypes/improved_clustered.py",
        "torch.stack([1 - on_best, on_best], -1)",
        "torch.stack([1 - on_best, torch.ones_like(on_best)], -1)",
        CLUSTERED,
        "hand",
    ),
    Mutant(
        "the best keys are seen by the mean too",
        "mechanisms/prototypes/improved_clustered.py",
        "_mask(best, m).logical_not_()",
        "_mask(best[..., :1], m).logical_not_()",
        CLUSTERED,
        "hand",
    ),
    Mutant(
        "the padding of a context is taken for that of the queries",
        "mechanisms/prototypes/clustered.py",
        "real is None or scope.positions is None or real.shape[1] != n",
        "real is None or real.shape[1] != n",
        CLUSTERED,
        "padding_of_a_context",
    ),
)
