"""Pairs of sentences: the grammar by hand, files, splits."""

from pathlib import Path

import pytest
import torch

from mapformers.core.errors import MapformersError
from mapformers.tasks.grammar import ADVERBS, NOUNS, Grammar, translate
from mapformers.tasks.pairs import read_pairs


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("the dog sees a king", "lea kela uno taso vidis"),
        ("the old dogs see a king", "leai kelai branai uno taso viden"),
        ("a queen finds the red fishes today", "hod una luna leoi sukoi roskoi trovis"),
        (
            "the children that love a star help the cats",
            "leai nemai ke una zeta amen leoi miroi juten",
        ),
        ("a bird that sees the trees paints a king", "una piva ke leoi doroi vidis uno taso pentis"),
    ],
)
def test_translations_by_hand(source: str, target: str) -> None:
    assert translate(source) == target


def test_the_verb_agrees_with_a_noun_far_away() -> None:
    one, many = (
        translate(f"the {noun} that {verb} a small star {last} the king")
        for noun, verb, last in (("dog", "sees", "hears"), ("dogs", "see", "hear"))
    )
    assert one.split()[-1] == "audis"
    assert many.split()[-1] == "auden"


def test_pairs_are_those_of_the_seed() -> None:
    def draw(seed: int) -> list[tuple[str, str]]:
        return Grammar().pairs(200, torch.Generator().manual_seed(seed))

    assert draw(0) == draw(0) != draw(1)
    assert all(target == translate(source) for source, target in draw(0))
    lengths = [len(source.split()) for source, _ in draw(0)]
    assert min(lengths) == 5
    assert max(lengths) <= 16
    words = {word for source, _ in draw(2) for word in source.split()}
    assert words >= set(NOUNS) | set(ADVERBS)


@pytest.mark.parametrize(
    "sentence",
    [
        "",
        "dog sees",
        "the dog",
        "the dog sees",
        "the dog sees the king now",
        "the sees",
        "the fishs see a king",
    ],
)
def test_other_sentences_are_refused(sentence: str) -> None:
    with pytest.raises(MapformersError, match="grammar: sentence must"):
        translate(sentence)


def test_files_are_written_and_read(tmp_path: Path) -> None:
    left, right = Grammar().write(tmp_path, 100, seed=0)
    assert len(left.read_text().splitlines()) == len(right.read_text().splitlines()) == 100
    pairs = read_pairs(f"{left},{right}", 0, 0)
    found = [pair for name in ("train", "valid", "test") for pair in pairs.splits[name]]
    assert sorted(found) == sorted(Grammar().pairs(100, torch.Generator().manual_seed(0)))
    sources = [{source for source, _ in pairs.splits[name]} for name in ("train", "valid", "test")]
    assert not sources[0] & sources[1]
    assert not sources[0] & sources[2]
    assert len(pairs.splits["train"]) > 60
    assert {path.name for path in tmp_path.iterdir()} == {"source.txt", "target.txt"}


def test_bad_files_are_named(tmp_path: Path) -> None:
    left, right = Grammar().write(tmp_path, 50, seed=0)
    short, latin, holes, empty = (tmp_path / f"{name}.txt" for name in ("short", "latin", "holes", "empty"))
    short.write_text("one\n")
    latin.write_bytes(b"caf\xe9\n" * 50)
    holes.write_text("a\n\n" * 25)
    empty.write_text("")
    for source, rule in (
        ("", "must not be empty"),
        (str(left), "must name two files"),
        (f"{left},{tmp_path / 'none.txt'}", "none.txt must exist"),
        (f"{left},{short}", "must have as many lines, got 50 and 1"),
        (f"{left},{latin}", "latin.txt must be UTF-8, got another byte at offset 3"),
        (f"{left},{holes}", "holes.txt line 2 must hold a sentence"),
        (f"{empty},{right}", "empty.txt must hold sentences"),
        (f"{short},{short}", "split of"),
    ):
        with pytest.raises(MapformersError, match=rule) as caught:
            read_pairs(source, 0, 0)
        assert "\n" not in str(caught.value)
    with pytest.raises(MapformersError, match="adjective must lie"):
        Grammar(adjective=2.0)
    with pytest.raises(MapformersError, match="count must be"):
        Grammar().pairs(0, torch.Generator())
