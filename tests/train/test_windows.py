"""The order of the sequences: a function of seed and number; every pass sees each window once."""

import numpy as np
import pytest

from mapformers.core.errors import MapformersError
from mapformers.train.windows import Windows

STREAM = np.arange(1000, dtype=np.uint64).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "context", "record"), [(1000, 64, 1), (64, 64, 1), (65, 64, 1), (640, 64, 64), (660, 64, 4)]
)
def test_a_pass_visits_windows_that_do_not_overlap(size: int, context: int, record: int) -> None:
    windows = Windows(np.zeros(size, dtype=np.uint8), context, seed=3, record=record)
    for number in range(3):
        starts = sorted(windows.start_of(number * windows.per_pass + i) for i in range(windows.per_pass))
        assert np.all(np.diff(starts) == context)
        assert starts[0] >= 0
        assert starts[-1] + context <= size
        assert all(start % record == 0 for start in starts)
        assert size - windows.per_pass * context < 2 * context


def test_any_sequence_is_known_without_those_before_it() -> None:
    numbers = [0, 5, 14, 15, 100, 3, 0]
    fresh = [Windows(STREAM, 64, seed=1).start_of(number) for number in numbers]
    one = Windows(STREAM, 64, seed=1)
    assert [one.start_of(number) for number in numbers] == fresh


def test_seeds_and_passes_differ() -> None:
    one, other = Windows(STREAM, 64, seed=1), Windows(STREAM, 64, seed=2)
    count = one.per_pass
    first = [one.start_of(i) for i in range(count)]
    assert first != [other.start_of(i) for i in range(count)]
    assert first != [one.start_of(count + i) for i in range(count)]


def test_an_item_is_the_bytes_of_the_stream() -> None:
    windows = Windows(STREAM, 64, seed=0)
    item, start = windows[7], windows.start_of(7)
    assert item["input_ids"].tolist() == STREAM[start : start + 64].tolist()
    assert item["labels"].tolist() == item["input_ids"].tolist()


def test_refusals() -> None:
    with pytest.raises(MapformersError, match="at least as long as the context"):
        Windows(STREAM, 1001, seed=0)
    with pytest.raises(MapformersError, match="multiple of record"):
        Windows(STREAM, 64, seed=0, record=10)
