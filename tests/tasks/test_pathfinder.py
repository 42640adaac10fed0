"""Pathfinder: marked, apart, and solvable by following what is bright."""

import time

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mapformers.core.errors import MapformersError
from mapformers.tasks.pathfinder import Pathfinder, PathfinderBatch


@pytest.fixture(scope="module")
def made() -> PathfinderBatch:
    return Pathfinder().batch(300, torch.Generator().manual_seed(0))


def reached(images: Tensor, ends: Tensor) -> Tensor:
    """[B] bool, whether pixels that are not dark lead from the first end to the second."""
    bright = (images > 0.2).float()[:, None]
    place = ends.round().long()
    rows = torch.arange(len(images))
    seen = torch.zeros_like(bright)
    seen[rows, 0, place[:, 0, 1], place[:, 0, 0]] = 1.0
    for _ in range(100):
        seen = F.max_pool2d(seen, 3, stride=1, padding=1) * bright
    return seen[rows, 0, place[:, 1, 1], place[:, 1, 0]] > 0


def test_the_images_can_be_solved(made: PathfinderBatch) -> None:
    right = (reached(made.images, made.ends) == made.target.bool()).double().mean()
    assert float(right) >= 0.95


def test_both_ends_are_marked(made: PathfinderBatch) -> None:
    """A disc: the pixels around an end are all bright, which no dash is wide enough for."""
    discs = F.avg_pool2d(made.images[:, None], 3, stride=1, padding=1)[:, 0]
    place = made.ends.round().long()
    rows = torch.arange(len(discs))
    for end in (0, 1):
        assert float(discs[rows, place[:, end, 1], place[:, end, 0]].min()) > 0.65
    assert made.images.min() >= 0
    assert made.images.max() <= 1


def test_paths_keep_apart(made: PathfinderBatch) -> None:
    for paths in made.paths[:50]:
        points = [path[~path[:, 0].isnan()] for path in paths]
        points = [path for path in points if len(path)]
        assert len(points) >= 2
        for i, one in enumerate(points):
            for other in points[i + 1 :]:
                assert float(torch.cdist(one, other).min()) >= 4.5


def test_classes_and_ends(made: PathfinderBatch) -> None:
    assert 0.4 < float(made.target.double().mean()) < 0.6
    first, second = made.paths[:, 0], made.paths[:, 1]
    same = made.target == 1
    assert torch.equal(made.ends[:, 0], first[:, 0])
    assert torch.equal(made.ends[same][:, 1], first[same][:, -1])
    assert torch.equal(made.ends[~same][:, 1], second[~same][:, 0])


def test_a_seed_is_a_set_of_images(global_random_untouched: None) -> None:
    one, two, other = (Pathfinder().batch(8, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.images, two.images)
    assert not torch.equal(one.images, other.images)


@pytest.mark.slow
@pytest.mark.clean_memory
def test_five_hundred_images_a_second() -> None:
    task, generator = Pathfinder(), torch.Generator().manual_seed(0)
    best = 0.0
    for _ in range(5):
        began = time.process_time()  # of this process: others on the machine do not count
        task.batch(500, generator)
        best = max(best, 500 / (time.process_time() - began))
    assert best >= 500


@pytest.mark.slow
def test_bad_sizes_are_named() -> None:
    for options in ({"size": 8}, {"reach": 40}, {"distractors": -1}, {"apart": 2.0}, {"apart": 9.0}):
        with pytest.raises(MapformersError, match="pathfinder"):
            Pathfinder(**options)
    with pytest.raises(MapformersError, match="got no room"):
        Pathfinder(size=24, reach=24, apart=4.0).batch(50, torch.Generator())
