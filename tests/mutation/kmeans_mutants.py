"""Bugs in how centroids move, which only training shows."""

from tests.mutation.mutant import Mutant

KMEANS = ("tests/mechanisms/test_kmeans.py",)
KMEANS_MUTANTS = (
    Mutant(
        "statistics in evaluation",
        "attention/multi_head.py",
        "gathering = self.training and not _in_backward()",
        "gathering = not _in_backward()",
        KMEANS,
        "evaluation",
    ),
    Mutant(
        "statistics twice under checkpointing",
        "attention/multi_head.py",
        "gathering = self.training and not _in_backward()",
        "gathering = self.training",
        KMEANS,
        "checkpointing",
    ),
    Mutant(
        "padding counts for centroids",
        "mechanisms/content/kmeans.py",
        "            member = member * is_real[:, None, :, None]\n",
        "",
        KMEANS,
        "padding",
    ),
    Mutant(
        "micro-batches overwrite each other",
        "mechanisms/content/kmeans.py",
        "self._sums = sums if self._sums is None else self._sums + sums",
        "self._sums = sums",
        KMEANS,
        "micro",
    ),
    Mutant(
        "ranks not summed",
        "mechanisms/content/kmeans.py",
        "        dist.all_reduce(x)\n    return x",
        "        pass\n    return x",
        KMEANS,
        "processes",
    ),
    Mutant(
        "centroids not renormalised",
        "mechanisms/content/kmeans.py",
        "moved = F.normalize(self.decay * self.centroids + (1 - self.decay) * mean, dim=-1)",
        "moved = self.decay * self.centroids + (1 - self.decay) * mean",
        KMEANS,
        "formula",
    ),
    Mutant(
        "load bias pushes the wrong way",
        "mechanisms/content/kmeans.py",
        "torch.sign(1.0 / clusters - fraction)",
        "torch.sign(fraction - 1.0 / clusters)",
        KMEANS,
        "bias",
    ),
    Mutant(
        "dead clusters stay dead",
        "mechanisms/content/kmeans.py",
        "        self._revive(samples)\n",
        "",
        KMEANS,
        "revive",
    ),
    Mutant(
        "centroids narrowed with the model",
        "mechanisms/content/kmeans.py",
        "if after.dtype in (torch.float16, torch.bfloat16):",
        "if False:",
        KMEANS,
        "narrow",
    ),
)
