import pytest
import torch

from mapformers.core.errors import MapformersError
from mapformers.tasks.max_regression import MaxRegression


@pytest.mark.parametrize(("fewest", "most"), [(1, 10), (3, 3), (1, 1), (2, 7)])
def test_the_target_is_the_maximum_of_the_real_numbers(fewest: int, most: int) -> None:
    task = MaxRegression(fewest, most)
    numbers, real, target = task.batch(200, torch.Generator().manual_seed(0))
    assert numbers.shape == real.shape == (200, most)
    for row, here, largest in zip(numbers.tolist(), real.tolist(), target.tolist(), strict=True):
        count = sum(here)
        assert fewest <= count <= most
        assert here == [True] * count + [False] * (most - count)
        assert largest == max(row[:count])
        assert row[count:] == [0.0] * (most - count)
        assert all(0 <= number < 100 for number in row)


def test_sizes_and_numbers_are_uniform() -> None:
    """20,000 sets: five standard deviations are 212 of each size, and 0.46 of the mean of 100,000 numbers."""
    numbers, real, _ = MaxRegression().batch(20_000, torch.Generator().manual_seed(1))
    counts = real.sum(1).bincount(minlength=11).tolist()
    assert counts[0] == 0
    assert all(abs(count - 2000) < 212 for count in counts[1:]), counts
    assert abs(float(numbers[real].mean()) - 50) < 0.46


def test_same_generator_same_batch_and_the_global_state_stays() -> None:
    before = torch.get_rng_state()
    first, again, other = (MaxRegression().batch(9, torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(first.numbers, again.numbers)
    assert not torch.equal(first.numbers, other.numbers)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fewest": 0}, "fewest must be 1 or more, got 0"),
        ({"fewest": 5, "most": 4}, "most must be fewest=5 or more, got 4"),
        ({"high": 0.0}, "high must be above 0, got 0.0"),
    ],
)
def test_impossible_sizes_are_refused(options: dict, message: str) -> None:
    with pytest.raises(MapformersError, match=f"max_regression: {message}"):
        MaxRegression(**options)
