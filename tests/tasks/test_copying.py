"""Copying and selective copying: what is drawn is spread as the papers say, and the answers are there."""

import torch

from mapformers.tasks.copying import Copying, SelectiveCopying


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_lengths_of_words_are_uniform() -> None:
    """N = 32: words of 8 .. 15 symbols, each an eighth of 4,000."""
    counts = torch.bincount((Copying(32).batch(4000, rng()).target >= 0).sum(1), minlength=17)
    assert not counts[:8].any()
    assert not counts[16:].any()
    assert int(counts[8:16].min()) > 400
    assert int(counts[8:16].max()) < 600


def test_symbols_are_uniform_and_0_marks() -> None:
    task = Copying(64, symbols=5)
    made = task.batch(400, rng())
    assert task.vocabulary == 6
    shares = torch.bincount(made.tokens[made.tokens > 0], minlength=6)[1:].double()
    assert len(shares) == 5
    assert bool((shares / shares.sum() - 0.2).abs().max() < 0.02)
    assert not made.tokens[:, 0].any()


def test_every_place_lies_in_the_sequence_and_has_a_next_token() -> None:
    for length in (8, 9, 10, 11, 31):
        made = Copying(length).batch(200, rng())
        assert int(made.place.min()) > 0
        assert int(made.place.max()) <= length - 2
        asked = made.target >= 0
        assert torch.equal(made.tokens.gather(1, made.place + 1)[asked], made.target[asked])


def test_questions_begin_at_the_second_mark() -> None:
    """The first half cannot be guessed, and does not count."""
    made = Copying(40).batch(100, rng())
    assert not made.tokens.gather(1, made.place[:, :1]).any()
    assert torch.equal(made.place[:, 0], (made.target >= 0).sum(1) + 1)


def test_the_size_of_the_paper() -> None:
    """Mamba: 4,096 tokens of a vocabulary of 16, 16 of them data."""
    task = SelectiveCopying(length=4096)
    made = task.batch(4, rng())
    assert task.vocabulary == 16
    assert made.tokens.shape == (4, 4096)
    assert made.target.shape == made.place.shape == (4, 16)


def test_data_lies_anywhere_in_the_noise() -> None:
    """A quarter of the data in each quarter of the places; every symbol as often."""
    made = SelectiveCopying(length=72, symbols=4, data=8).batch(1500, rng())
    quarters = (made.tokens[:, :64] > 1).view(1500, 4, 16).sum((0, 2)).double() / (1500 * 8)
    assert bool((quarters - 0.25).abs().max() < 0.02)
    symbols = torch.bincount(made.target.flatten(), minlength=6)
    assert not symbols[:2].any()
    assert bool((symbols[2:].double() / symbols.sum() - 0.25).abs().max() < 0.02)


def test_data_may_fill_all_the_room() -> None:
    made = SelectiveCopying(length=8, symbols=3, data=4).batch(20, rng())
    assert torch.equal(made.tokens[:, :4], made.target)
