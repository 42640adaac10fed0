"""Generators that ask for answers at some places: worked out by hand, and bounded."""

from typing import Any

import pytest
import torch

from mapformers.core.errors import MapformersError
from mapformers.tasks.copying import Copying, SelectiveCopying, accuracy
from mapformers.tasks.induction import Induction
from mapformers.tasks.passkey import NAMES, Passkey
from mapformers.tasks.tones import Tones


def draw(task: Any, size: int = 60, seed: int = 0) -> Any:
    return task.batch(size, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("length", [8, 16, 33, 128])
def test_a_word_is_said_again(length: int) -> None:
    made = draw(Copying(length))
    assert made.tokens.shape == (60, length)
    sizes = set()
    for row, places, target in zip(
        made.tokens.tolist(), made.place.tolist(), made.target.tolist(), strict=True
    ):
        word = [symbol for symbol in target if symbol != -100]
        count = len(word)
        sizes.add(count)
        assert length // 4 <= count <= (length - 2) // 2
        assert row == [0, *word, 0, *word, *[0] * (length - 2 * count - 2)]
        for place, symbol in zip(places, word, strict=False):
            assert row[place + 1] == symbol
            assert place > count
    assert len(sizes) > 1


def test_data_is_picked_out_of_noise() -> None:
    made = draw(SelectiveCopying(length=40, symbols=5, data=6))
    for row, places, target in zip(
        made.tokens.tolist(), made.place.tolist(), made.target.tolist(), strict=True
    ):
        assert [symbol for symbol in row if symbol > 1] == target
        assert places == list(range(34, 40))
        assert row[34:] == [1] * 6
        assert 1 not in row[:34]


def test_what_followed_the_special_token() -> None:
    made = draw(Induction(length=20, vocabulary=7))
    for row, place, target in zip(
        made.tokens.tolist(), made.place.tolist(), made.target.tolist(), strict=True
    ):
        assert row.count(0) == 2
        assert place == [19]
        assert row[19] == 0
        assert target == [row[row.index(0) + 1]]


@pytest.mark.parametrize("needles", [1, 4])
def test_the_key_that_is_asked_for(needles: int) -> None:
    made = draw(Passkey(length=300, needles=needles), 20)
    for row, places, target in zip(
        made.tokens.tolist(), made.place.tolist(), made.target.tolist(), strict=True
    ):
        text = bytes(row).decode()
        name = text.partition("What is the pass key of ")[2].partition("?")[0]
        key = bytes(target).decode()
        assert name in NAMES
        assert f"The pass key of {name} is {key}. " in text
        assert text.count("The pass key of ") == needles
        assert text.endswith(f"It is {key}")
        assert [row[place + 1] for place in places] == target


def test_the_depth_of_the_key() -> None:
    first, last = (draw(Passkey(length=300, depth=depth), 5).tokens.tolist() for depth in (0.0, 1.0))
    assert all(bytes(row).startswith(b"The pass key of") for row in first)
    assert all(b". What is the pass key" in bytes(row)[-90:] for row in last)
    assert all(bytes(row).index(b"The pass key of") > 150 for row in last)


def test_tones_differ_in_their_order_alone() -> None:
    """Sorted by loudness of their frequencies, clips of all classes are alike; by time they are not."""
    task = Tones(samples=3000, tones=3, classes=6, rate=4000, noise=0.0, silence=0.0, pause=0.0)
    made = draw(task, 60)
    assert set(made.target.tolist()) == set(range(6))
    pitches = 220.0 * 2 ** (torch.arange(3) / 2)
    orders = []
    for row in made.samples:
        heard = []
        for part in row.view(3, 1000):
            spectrum = torch.fft.rfft(part * torch.hann_window(1000)).abs()
            heard.append(int((pitches - spectrum.argmax() * 4).abs().argmin()))
        orders.append(tuple(heard))
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    by_class = dict(zip(made.target.tolist(), orders, strict=True))
    assert len(set(by_class.values())) == 6
    assert all(by_class[target] == order for target, order in zip(made.target.tolist(), orders, strict=True))


def test_a_pause_stands_between_tones() -> None:
    made = draw(Tones(samples=3300, rate=4000, noise=0.0, silence=0.0, pause=1 / 11), 10).samples
    assert bool((made[:, :300] == 0).all())
    quiet = (made[:, 300:].abs() == 0).view(10, 3, 1000)
    assert bool(quiet[:, :, 700:].all())
    assert float(quiet[:, :, :700].double().mean()) < 0.01


@pytest.mark.parametrize(
    "task", [Copying(32), SelectiveCopying(32, 4, 4), Induction(32), Passkey(200), Tones(64, rate=4000)]
)
def test_a_seed_is_a_batch(task: Any, global_random_untouched: None) -> None:
    one, two, other = (draw(task, 8, seed) for seed in (0, 0, 1))
    assert torch.equal(one[0], two[0])
    assert not torch.equal(one[0], other[0])


def test_accuracy_counts_questions_alone() -> None:
    logits = torch.eye(3)[None, [0, 1, 2]]
    assert accuracy(logits, torch.tensor([[0, 2, -100]])) == 0.5


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Copying, {"length": 7}),
        (Copying, {"symbols": 0}),
        (SelectiveCopying, {"length": 10, "data": 6}),
        (SelectiveCopying, {"data": 0}),
        (SelectiveCopying, {"symbols": 0}),
        (Induction, {"length": 2}),
        (Induction, {"vocabulary": 2}),
        (Passkey, {"length": 50}),
        (Passkey, {"needles": 9}),
        (Passkey, {"depth": 1.5}),
        (Passkey, {"digits": 0}),
        (Tones, {"classes": 7}),
        (Tones, {"tones": 1}),
        (Tones, {"lowest": 7000.0}),
        (Tones, {"silence": 1.0}),
        (Tones, {"noise": -1.0}),
        (Tones, {"pause": 0.3}),
        (Tones, {"samples": 3}),
    ],
)
def test_bad_sizes_are_named(kind: type, options: dict[str, Any]) -> None:
    with pytest.raises(MapformersError, match="got") as caught:
        kind(**options)
    assert "\n" not in str(caught.value)
