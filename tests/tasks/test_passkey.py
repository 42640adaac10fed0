"""Passkey: what a reader of the whole text can say, where the needles stand, and what digits there are."""

import re

import pytest
import torch

from mapformers.tasks.passkey import FILLER, Passkey, PasskeyBatch


def draw(size: int = 40, seed: int = 0, **options: float) -> PasskeyBatch:
    return Passkey(**options).batch(size, torch.Generator().manual_seed(seed))


def texts(made: PasskeyBatch) -> list[str]:
    return [bytes(row).decode("ascii") for row in made.tokens.tolist()]


@pytest.mark.parametrize("needles", [1, 2, 8])
def test_who_reads_everything_knows_the_key(needles: int) -> None:
    made = draw(length=600, needles=needles)
    for text, target in zip(texts(made), made.target.tolist(), strict=True):
        keys = dict(re.findall(r"The pass key of (\w+) is (\d+)\. ", text))
        assert len(keys) == needles
        asked = re.findall(r"What is the pass key of (\w+)\? It is \d+$", text)
        assert keys[asked[0]] == bytes(target).decode()


@pytest.mark.parametrize("length", [120, 121, 512, 1000])
def test_a_text_has_the_length_that_was_asked_for(length: int) -> None:
    made = draw(5, length=length)
    assert made.tokens.shape == (5, length)
    assert made.place.tolist() == [[*range(length - 5, length - 1)]] * 5


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_a_depth_is_a_share_of_the_filler(depth: float) -> None:
    """Without needle and question, depth x filler bytes stand before the needle."""
    for text in texts(draw(10, length=800, depth=depth)):
        needle = re.search(r"The pass key of \w+ is \d+\. ", text)
        question = text.index("What is the pass key")
        assert needle is not None
        room = question - len(needle[0])
        assert needle.start() == round(depth * room)


def test_without_a_depth_the_needle_stands_anywhere() -> None:
    starts = torch.tensor([text.index("The pass key") for text in texts(draw(800, length=500))]).double()
    quarters = torch.histc(starts / 420, bins=4, min=0, max=1) / 800
    assert float((quarters - 0.25).abs().max()) < 0.07


def test_digits_are_uniform_and_the_fewest_bytes_are_enough() -> None:
    made = draw(2000, length=150)
    counts = torch.bincount(made.target.flatten() - ord("0"), minlength=10).double()
    assert len(counts) == 10
    assert bool((counts / counts.sum() - 0.1).abs().max() < 0.02)
    tight = len("The pass key of Ann is 7. ") + len("What is the pass key of Ann? It is 7")
    assert texts(draw(3, length=tight, digits=1))[0].startswith("The pass key of")


def test_the_rest_is_filler() -> None:
    for text in texts(draw(10, length=400, depth=0.0)):
        body = text[text.index(". ") + 2 : text.index("What is")]
        rest = body
        for sentence in FILLER:
            rest = rest.replace(sentence, "")
        assert len(rest) < max(map(len, FILLER))  # the last sentence may be cut
        assert not re.search(r"\d", body)
