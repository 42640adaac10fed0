"""The hash against Python's own integers, and subsets: different members, all sets as likely."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from mapformers.core.scope import Scope
from mapformers.mechanisms.sparse.draws import (
    below,
    document_lengths,
    draw_seed,
    hashed,
    query_lengths,
    subset,
)

MASK = (1 << 64) - 1
SEED = torch.tensor(1234567890123456789)


def splitmix(state: int) -> int:
    """The generator's output after one step from `state`, in integers of any size."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def hashed_in_python(seed: int, *counters: int) -> int:
    state = splitmix(seed)
    for counter in counters:
        state = splitmix((state + counter * 0x9E3779B97F4A7C15) & MASK)
    return state


def rows(count: int) -> Tensor:
    """[count] bits of different rows."""
    return hashed(SEED, torch.arange(count))


def chi_square(observed: Tensor, expected: float) -> float:
    """Standard deviations of the statistic above its mean, which are the degrees of freedom."""
    freedom = observed.numel() - 1
    statistic = float(((observed.double() - expected) ** 2 / expected).sum())
    return (statistic - freedom) / math.sqrt(2 * freedom)


def test_the_first_number_of_the_published_generator() -> None:
    """SplitMix64 from state 0, as its authors' program prints it."""
    assert splitmix(0) == 0xE220A8397B1DCDAF


def test_the_hash_wraps_around_as_unsigned_integers_do() -> None:
    counters = (0, 1, 7, 4096, 2**31)
    for pair in itertools.product(counters, repeat=2):
        got = int(hashed(SEED, torch.tensor(pair[0]), pair[1])) & MASK
        assert got == hashed_in_python(int(SEED), *pair), pair


def test_every_counter_counts_and_so_does_their_order() -> None:
    grid = hashed(SEED, torch.arange(60)[:, None], torch.arange(60))
    assert grid.unique().numel() == 3600
    assert not torch.equal(grid, hashed(SEED + 1, torch.arange(60)[:, None], torch.arange(60)))


@pytest.mark.parametrize("bound", [2, 7, 64, 1000])
def test_numbers_are_uniform(bound: int) -> None:
    numbers = below(rows(200 * bound), torch.tensor(bound))
    assert int(numbers.min()) >= 0
    assert int(numbers.max()) < bound
    assert abs(chi_square(numbers.bincount(minlength=bound), 200)) < 4


@pytest.mark.parametrize(("pool", "count"), [(2, 1), (5, 2), (6, 3), (6, 5), (7, 7), (4, 0)])
def test_every_set_is_as_likely_as_any_other(pool: int, count: int) -> None:
    sets = [frozenset(c) for c in itertools.combinations(range(pool), count)]
    draws = 300 * len(sets)
    drawn = [frozenset(row) for row in subset(rows(draws), torch.tensor(pool), count).tolist()]
    observed = torch.tensor([drawn.count(one) for one in sets])
    assert int(observed.sum()) == draws, "something else than a set of that size was drawn"
    assert len(sets) == 1 or abs(chi_square(observed, 300)) < 4


def test_members_differ_and_small_pools_are_taken_whole() -> None:
    pool = torch.arange(40)
    drawn = subset(hashed(SEED, torch.arange(50)[:, None], torch.arange(40)), pool, 6)  # [50, 40, 6]
    assert drawn.shape == (50, 40, 6)
    for size in range(40):
        for row in drawn[:, size].tolist():
            members = [x for x in row if x >= 0]
            assert len(set(members)) == len(members) == min(size, 6)
            assert all(x < size for x in members)
            assert size >= 6 or set(members) == set(range(size))


def test_rows_and_heads_are_independent() -> None:
    """How often two heads draw the same of 10 numbers: one time in ten."""
    state = hashed(SEED, torch.arange(2)[:, None], torch.arange(20000))
    a, b = subset(state, torch.tensor(10), 1)[..., 0]
    both = torch.stack([a * 10 + b]).flatten().bincount(minlength=100)
    assert abs(chi_square(both, 200)) < 4
    neighbours = (a[1:] * 10 + a[:-1]).bincount(minlength=100)
    assert abs(chi_square(neighbours, 19999 / 100)) < 4


def test_a_larger_call_draws_the_same() -> None:
    few = subset(rows(10), torch.tensor(30), 4)
    assert torch.equal(few, subset(rows(1000), torch.tensor(30), 4)[:10])


def test_seeds_come_from_the_generator_alone(global_random_untouched: None) -> None:
    a, b = (draw_seed(torch.Generator().manual_seed(i)) for i in (0, 1))
    assert a != b
    assert a == draw_seed(torch.Generator().manual_seed(0))
    assert a.dtype == torch.long
    with torch.device("meta"):
        assert draw_seed(torch.Generator()).is_meta


def test_lengths_of_documents() -> None:
    device = torch.device("cpu")
    documents = torch.tensor([[4, 4, 4, 0, 0, 9, 9]])
    real = torch.tensor([[1, 1, 0, 0, 0, 1, 1], [1, 0, 1, 1, 0, 1, 0]]).bool()
    assert document_lengths(Scope(), 7, device).tolist() == [[7]]
    assert document_lengths(Scope(key_is_real=real), 7, device).tolist() == [[4], [4]]
    packed = Scope(segments=documents)
    assert document_lengths(packed, 7, device).tolist() == [[3, 3, 3, 2, 2, 2, 2]]
    both = Scope(segments=documents, key_is_real=real)
    rows = [[2, 2, 2, 0, 0, 2, 2], [2, 2, 2, 1, 1, 1, 1]]
    assert document_lengths(both, 7, device).tolist() == rows
    later = Scope(segments=documents[:, 4:], key_segments=documents, query_start=4)
    assert query_lengths(later, 3, 7, device).tolist() == [[2, 2, 2]]
