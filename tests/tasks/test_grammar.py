"""Grammar: laws of order and agreement, and what the options do."""

from pathlib import Path

import pytest
import torch

from mapformers.core.errors import MapformersError
from mapformers.tasks.grammar import ADJECTIVES, ADVERBS, ARTICLES, NOUNS, VERBS, Grammar, translate


def draw(count: int = 300, seed: int = 0, **options: float) -> list[tuple[str, str]]:
    return Grammar(**options).pairs(count, torch.Generator().manual_seed(seed))


def test_the_shortest_and_the_longest_sentence() -> None:
    for source, target in draw(50, adjective=0, plural=0, clause=0, adverb=0):
        assert len(source.split()) == len(target.split()) == 5
    for source, target in draw(50, adjective=1, plural=0, clause=1, adverb=1):
        assert len(source.split()) == len(target.split()) == 13


def test_a_translation_has_a_word_for_each_word() -> None:
    stems = {word: stem for word, (stem, _) in NOUNS.items()} | ADJECTIVES | ADVERBS | ARTICLES
    stems |= {"that": "ke", **VERBS}
    for source, target in draw():
        found = [
            stems.get(word) or stems.get(word + "s") or stems[ONE.get(word, word.removesuffix("s"))]
            for word in source.split()
        ]
        left = target.split()
        for stem in sorted(found, key=len, reverse=True):
            match = next(word for word in left if word.startswith(stem))
            left.remove(match)
        assert not left


ONE = {"children": "child", "fishes": "fish"}


def test_the_verb_stands_last_and_the_adverb_first() -> None:
    verbs = {stem + ending for stem in VERBS.values() for ending in ("is", "en")}
    said = set(ADVERBS.values())
    for source, target in draw(clause=0.0):
        words = target.split()
        assert words[-1] in verbs
        assert sum(word in verbs for word in words) == 1
        assert (words[0] in said) == (source.split()[-1] in ADVERBS)


def test_adjectives_stand_behind_nouns_and_end_like_them() -> None:
    """With an adjective everywhere and nothing else: article noun adjective, twice, and the verb."""
    seen = set()
    for source, target in draw(adjective=1, clause=0, adverb=0):
        words = target.split()
        assert len(words) == 7
        for phrase, noun in ((words[0:3], source.split()[2]), (words[3:6], source.split()[6])):
            one = noun if noun in NOUNS else ONE.get(noun, noun.removesuffix("s"))
            stem, vowel = NOUNS[one]
            ending = vowel + ("" if noun in NOUNS else "i")
            assert phrase[1] == stem + ending
            assert all(word.endswith(ending) for word in phrase)
            seen.add(ending)
    assert seen == {"a", "o", "ai", "oi"}


def test_both_verbs_of_a_clause_agree_with_the_subject_and_not_with_the_noun_between() -> None:
    """The subject in front decides; the noun nearest to the last verb often has the other number."""
    against = 0
    for source, target in draw(clause=1.0, adverb=0.0):
        many = target.split()[0].endswith("i")
        ends = [word for word in target.split() if word[:-2] in VERBS.values()]
        assert len(ends) == 2
        assert all(word.endswith("en") == many for word in ends)
        last = source.split()[-1]
        against += (last not in NOUNS) != many
    assert 100 < against < 200  # of 300: 2 x .4 x .6


def test_options_are_shares() -> None:
    pairs = draw(2000)
    clauses = sum("that" in source.split() for source, _ in pairs) / 2000
    adverbs = sum(source.split()[-1] in ADVERBS for source, _ in pairs) / 2000
    many = sum(target.split()[-1].endswith("en") for _, target in pairs) / 2000
    assert clauses == pytest.approx(0.35, abs=0.05)
    assert adverbs == pytest.approx(0.4, abs=0.05)
    assert many == pytest.approx(0.4, abs=0.05)


def test_some_forty_words_have_forms_of_their_own() -> None:
    pairs = draw(4000)
    left = {word for source, _ in pairs for word in source.split()}
    right = {word for _, target in pairs for word in target.split()}
    assert len(left) == 2 + 1 + 2 * len(NOUNS) + len(ADJECTIVES) + 2 * len(VERBS) + len(ADVERBS)
    assert len(right) > len(left)  # adjectives and articles have four forms
    assert len({target for _, target in pairs}) == len({source for source, _ in pairs})


def test_different_sentences_are_most_of_them() -> None:
    assert len({source for source, _ in draw(2000)}) > 1600


def test_files_of_a_seed_replace_those_before(tmp_path: Path, global_random_untouched: None) -> None:
    first = [path.read_text() for path in Grammar().write(tmp_path / "new", 30, seed=1)]
    other = [path.read_text() for path in Grammar().write(tmp_path / "new", 30, seed=2)]
    again = [path.read_text() for path in Grammar().write(tmp_path / "new", 30, seed=1)]
    assert first == again
    assert first != other
    assert first[1] == "".join(translate(line) + "\n" for line in first[0].splitlines())


@pytest.mark.parametrize("name", ["adjective", "plural", "clause", "adverb"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_shares_are_bounded(name: str, value: float) -> None:
    with pytest.raises(MapformersError, match=f"grammar: {name} must lie in") as caught:
        Grammar(**{name: value})
    assert "\n" not in str(caught.value)
