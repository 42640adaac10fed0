import pytest
import torch

from mapformers.core.errors import MapformersError
from mapformers.tasks.recall import Recall, accuracy


def draw(seed: int = 0, size: int = 50, **options: int):
    return Recall(**options).batch(size, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("pairs", "length", "gap"), [(8, 64, 18), (32, 256, 18), (1, 3, 0), (3, 15, 4)])
def test_every_target_is_the_value_paired_with_the_asked_key(pairs: int, length: int, gap: int) -> None:
    tokens, place, target = draw(pairs=pairs, length=length, gap=gap)
    assert tokens.shape == (50, length)
    assert place.shape == target.shape == (50, pairs)
    for row, where, said in zip(tokens.tolist(), place.tolist(), target.tolist(), strict=True):
        book = dict(zip(row[: 2 * pairs : 2], row[1 : 2 * pairs : 2], strict=True))
        assert [book[row[p]] for p in where] == said


def test_keys_and_values_are_distinct_and_in_their_halves() -> None:
    tokens, _, _ = draw(pairs=8, vocabulary=20, length=64)
    for row in tokens.tolist():
        keys, values = row[0:16:2], row[1:16:2]
        assert len(set(keys)) == len(set(values)) == 8
        assert all(1 <= key < 10 for key in keys)
        assert all(10 <= value < 20 for value in values)


def test_every_key_is_asked_once_and_the_rest_is_filler() -> None:
    tokens, place, _ = draw()
    asked = tokens.gather(1, place)
    assert torch.equal(asked.sort(-1).values, tokens[:, 0:16:2].sort(-1).values)
    rest = tokens.scatter(1, place, 0)[:, 16:]
    assert not rest.any()


def test_queries_stand_behind_the_gap_in_rising_order() -> None:
    _, place, _ = draw(size=500)
    assert int(place.min()) == 16 + 18
    assert int(place.max()) == 62
    assert bool((place.diff(dim=-1) > 0).all())
    assert bool((place % 2 == 0).all())


def test_a_two_layer_band_of_8_cannot_reach_a_pair() -> None:
    """Two layers that look 8 tokens back, and the token before as input: 17 tokens."""
    _, place, _ = draw(size=500)
    assert int(place.min()) - 17 > 15


def test_same_generator_same_batch_and_the_global_state_stays() -> None:
    before = torch.get_rng_state()
    first, again, other = draw(seed=3), draw(seed=3), draw(seed=4)
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.target, again.target)
    assert not torch.equal(first.tokens, other.tokens)
    assert torch.equal(before, torch.get_rng_state())


def test_accuracy_counts_best_logits() -> None:
    target = torch.tensor([[1, 2], [0, 2]])
    logits = torch.nn.functional.one_hot(torch.tensor([[1, 2], [1, 2]]), 3).float()
    assert accuracy(logits, target) == 0.75


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 48}, "length must be 49 or more for 8 pairs and gap 18, got 48"),
        ({"pairs": 128, "length": 4096}, "pairs must be below vocabulary / 2 = 128, got 128"),
        ({"pairs": 0}, "pairs must be 1 or more, got 0"),
        ({"gap": -1}, "gap must be 0 or more, got -1"),
        ({"vocabulary": 3}, "vocabulary must be 4 or more, got 3"),
    ],
)
def test_impossible_sizes_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(MapformersError, match=message):
        Recall(**options)
