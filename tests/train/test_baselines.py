"""Reference scores: against a brute-force definition on small data, and against known scores on real text."""

import math
import os
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from mapformers.core.errors import MapformersError
from mapformers.tasks.baselines import baselines, witten_bell, xz_given
from tests.train.tiny import text


def brute_force(train: bytes, test: bytes, order: int) -> float:
    """Interpolated Witten-Bell with dictionaries, straight from the formula."""
    counts: dict[bytes, Counter[int]] = defaultdict(Counter)
    for k in range(order + 1):
        for i in range(k, len(train)):
            counts[train[i - k : i]][train[i]] += 1

    def probability(context: bytes, byte: int) -> float:
        lower = probability(context[1:], byte) if context else 1 / 256
        seen = counts.get(context)
        if seen is None:
            return lower
        return (seen[byte] + len(seen) * lower) / (sum(seen.values()) + len(seen))

    return -sum(math.log2(probability(test[max(0, i - order) : i], test[i])) for i in range(1, len(test))) / (
        len(test) - 1
    )


def as_array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype=np.uint8)


@pytest.mark.parametrize("order", [0, 1, 2, 5, 7])
def test_witten_bell_is_its_definition(order: int) -> None:
    train, test = text(900), text(300, seed=1) + bytes(range(0, 256, 7)) + b"\xff\x00"
    fast = witten_bell(as_array(train), as_array(test), order)
    assert fast == pytest.approx(brute_force(train, test, order), abs=1e-9)


@pytest.mark.parametrize(("train", "test"), [(b"a", b"ab"), (b"ab", b"ba"), (b"abc", b"abcabc")])
def test_shortest_texts(train: bytes, test: bytes) -> None:
    fast = witten_bell(as_array(train), as_array(test), 5)
    assert fast == pytest.approx(brute_force(train, test, min(5, len(train) - 1, len(test) - 1)), abs=1e-9)


def test_xz_uses_the_training_bytes() -> None:
    noise = np.random.Generator(np.random.PCG64(0)).integers(0, 256, 20_000).astype(np.uint8)
    assert xz_given(noise, noise[5_000:9_000]) < 1.0
    assert xz_given(noise[:5_000], noise[5_000:9_000]) > 7.9


def test_one_held_out_byte_is_refused() -> None:
    with pytest.raises(MapformersError, match="2 bytes or more"):
        baselines(as_array(b"abc"), as_array(b"a"))


@pytest.mark.slow
def test_known_scores_on_wikitext() -> None:
    folder = os.environ.get("MAPFORMERS_DATA")
    if folder is None or not (Path(folder) / "wikitext2").is_dir():
        pytest.skip(
            "MAPFORMERS_DATA must name a folder that holds wikitext2/wikitext2.valid.txt and .test.txt"
        )
    train, test = (
        np.fromfile(Path(folder) / "wikitext2" / f"wikitext2.{split}.txt", dtype=np.uint8)
        for split in ("valid", "test")
    )
    scores = baselines(train, test)
    assert (round(scores.unigram, 3), round(scores.ngram, 3), round(scores.xz, 3)) == (4.609, 2.012, 1.999)
