"""Induction: where the special token stands and what follows it, to the smallest sizes."""

import torch

from mapformers.tasks.induction import Induction


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_smallest_task_has_one_example_for_each_value() -> None:
    """N = 3, V = 3: 0 v 0 with v of 1 and 2."""
    made = Induction(length=3, vocabulary=3).batch(50, rng())
    assert {tuple(row) for row in made.tokens.tolist()} == {(0, 1, 0), (0, 2, 0)}
    assert torch.equal(made.tokens[:, 1:2], made.target)


def test_the_first_of_the_two_stands_anywhere() -> None:
    """N = 12: at 0 .. 9, each a tenth of 5,000."""
    tokens = Induction(length=12).batch(5000, rng()).tokens
    counts = (tokens == 0).sum(0)
    assert int(counts[11]) == 5000
    assert int(counts[10]) == 0
    assert int(counts[:10].min()) > 400
    assert int(counts[:10].max()) < 600


def test_values_are_uniform() -> None:
    target = Induction(length=64, vocabulary=5).batch(4000, rng()).target
    counts = torch.bincount(target.flatten(), minlength=5)
    assert int(counts[0]) == 0
    assert int(counts[1:].min()) > 850
    assert int(counts[1:].max()) < 1150


def test_shapes_and_the_size_of_the_paper() -> None:
    made = Induction().batch(7, rng())
    assert made.tokens.shape == (7, 256)
    assert made.place.shape == made.target.shape == (7, 1)
    assert int(made.tokens.max()) < 16
