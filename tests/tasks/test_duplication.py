import pytest
import torch

from mapformers.core.errors import MapformersError
from mapformers.tasks.duplication import Duplication, accuracy


def draw(seed: int = 0, size: int = 50, **options: int):
    return Duplication(**options).batch(size, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("length", "symbols"), [(4, 1), (6, 3), (256, 127), (1024, 127)])
def test_zero_word_zero_word(length: int, symbols: int) -> None:
    tokens, _, _ = draw(length=length, symbols=symbols)
    assert tokens.shape == (50, length)
    for row in tokens.tolist():
        word = row[1 : length // 2]
        assert row == [0, *word, 0, *word]
        assert all(1 <= symbol <= symbols for symbol in word)


@pytest.mark.parametrize("length", [4, 6, 10, 256])
def test_every_target_is_the_next_token_and_stands_half_a_sequence_back(length: int) -> None:
    tokens, place, target = draw(length=length)
    assert place.tolist() == list(range(length // 2, length - 1))
    assert target.shape == (50, length // 2 - 1)
    assert torch.equal(target, tokens[:, place + 1])
    assert torch.equal(target, tokens[:, place + 1 - length // 2])


def test_symbols_are_uniform() -> None:
    """20,000 draws of 4 symbols: five standard deviations are 306."""
    tokens, _, _ = draw(size=200, length=202, symbols=4)
    counts = tokens[:, 1:101].flatten().bincount(minlength=5).tolist()
    assert counts[0] == 0
    assert all(abs(count - 5000) < 306 for count in counts[1:]), counts


def test_the_paper_s_sizes_are_the_defaults() -> None:
    task = Duplication()
    assert (task.length, task.symbols, task.vocabulary) == (1024, 127, 128)
    assert draw(size=2).target.shape == (2, 511)


def test_same_generator_same_batch_and_the_global_state_stays() -> None:
    before = torch.get_rng_state()
    first, again, other = draw(seed=3), draw(seed=3), draw(seed=4)
    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.tokens, other.tokens)
    assert torch.equal(before, torch.get_rng_state())


def test_rows_differ() -> None:
    tokens, _, _ = draw(length=64)
    assert len({tuple(row) for row in tokens.tolist()}) == 50


def test_accuracy_counts_best_logits() -> None:
    target = torch.tensor([[1, 2], [0, 2]])
    logits = torch.nn.functional.one_hot(torch.tensor([[1, 2], [1, 2]]), 3).float()
    assert accuracy(logits, target) == 0.75


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 7}, "length must be even and 4 or more, got 7"),
        ({"length": 2}, "length must be even and 4 or more, got 2"),
        ({"symbols": 0}, "symbols must be 1 or more, got 0"),
    ],
)
def test_impossible_sizes_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(MapformersError, match=f"duplication: {message}"):
        Duplication(**options)
