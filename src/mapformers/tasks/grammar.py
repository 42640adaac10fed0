"""A small translation: two made-up languages whose sentences differ in order and in agreement.

Formula  source: subject verb object, adjectives before nouns, a clause "that .." behind its noun, number on
         noun and verb only. Target: subject object verb, adjectives behind nouns; each noun has a class (a
         or o), its adjectives end like it, and the verb at the end agrees with the number of the subject
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from mapformers.core.errors import require

# source word -> target stem; nouns with the vowel of their class
NOUNS = {
    "dog": ("kel", "a"), "cat": ("mir", "o"), "king": ("tas", "o"), "queen": ("lun", "a"),
    "bird": ("piv", "a"), "tree": ("dor", "o"), "child": ("nem", "a"), "fish": ("suk", "o"),
    "farmer": ("gal", "o"), "teacher": ("ver", "a"), "horse": ("hib", "o"), "star": ("zet", "a"),
}  # fmt: skip
ADJECTIVES = {
    "old": "bran", "young": "fil", "red": "rosk", "small": "mint",
    "brave": "tolv", "quiet": "sesh", "tall": "arg", "happy": "lumi",
}  # fmt: skip
VERBS = {
    "sees": "vid", "hears": "aud", "finds": "trov", "follows": "sekv",
    "loves": "am", "helps": "jut", "paints": "pent", "forgets": "forg",
}  # fmt: skip
ADVERBS = {"today": "hod", "often": "oft", "never": "nenk", "again": "ree"}
MANY = {{"child": "children", "fish": "fishes"}.get(noun, noun + "s"): noun for noun in NOUNS}
ARTICLES = {"the": "le", "a": "un"}


@dataclass(frozen=True)
class Grammar:
    """How often the optional parts of a sentence stand there."""

    adjective: float = 0.5
    plural: float = 0.4
    clause: float = 0.35
    adverb: float = 0.4

    def __post_init__(self) -> None:
        for name in ("adjective", "plural", "clause", "adverb"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"grammar: {name} must lie in [0, 1], got {value}; change it")

    def pairs(self, count: int, generator: torch.Generator) -> list[tuple[str, str]]:
        """`count` sentences with their translations; the global random state is not touched."""
        require(count >= 1, f"grammar: count must be 1 or more, got {count}; raise it")
        draw = _Draw(generator)
        sources = (self._sentence(draw) for _ in range(count))
        return [(source, translate(source)) for source in sources]

    def write(self, folder: Path, count: int, seed: int) -> tuple[Path, Path]:
        """source.txt and target.txt with a sentence a line; returns their paths."""
        pairs = self.pairs(count, torch.Generator().manual_seed(seed))
        paths = folder / "source.txt", folder / "target.txt"
        folder.mkdir(parents=True, exist_ok=True)
        for path, lines in zip(paths, zip(*pairs, strict=True), strict=True):
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
            temporary.replace(path)
        return paths

    def _sentence(self, draw: _Draw) -> str:
        subject, plural = self._noun_phrase(draw, draw.chance(self.clause))
        verb = draw.one(list(VERBS))
        words = [*subject, verb[:-1] if plural else verb, *self._noun_phrase(draw, False)[0]]
        if draw.chance(self.adverb):
            words.append(draw.one(list(ADVERBS)))
        return " ".join(words)

    def _noun_phrase(self, draw: _Draw, clause: bool) -> tuple[list[str], bool]:
        """Words, and whether they are many. A clause "that VERB NOUN-PHRASE" agrees with its noun."""
        plural, noun = draw.chance(self.plural), draw.one(list(NOUNS))
        article = "the" if plural else draw.one(list(ARTICLES))
        adjectives = [draw.one(list(ADJECTIVES))] if draw.chance(self.adjective) else []
        words = [
            article,
            *adjectives,
            next(many for many, one in MANY.items() if one == noun) if plural else noun,
        ]
        if clause:
            verb = draw.one(list(VERBS))
            words += ["that", verb[:-1] if plural else verb, *self._noun_phrase(draw, False)[0]]
        return words, plural


def translate(source: str) -> str:
    """The one translation of a sentence. Raises MapformersError for words that are none of the language."""
    words = source.split()
    subject, plural, rest = _phrase(words, source)
    verb, rest = _verb(rest, source)
    target, _, rest = _phrase(rest, source)
    adverb = [ADVERBS[rest[0]]] if len(rest) == 1 and rest[0] in ADVERBS else []
    require(
        len(rest) == len(adverb), f"grammar: sentence must end there, got {' '.join(rest)!r}; see Grammar"
    )
    return " ".join([*adverb, *subject, *target, verb + ("en" if plural else "is")])


def _phrase(words: list[str], source: str) -> tuple[list[str], bool, list[str]]:
    """The translation of the noun phrase that words begin with, whether it is many, and the rest."""
    require(
        len(words) >= 2 and words[0] in ARTICLES,
        f"grammar: sentence must have a noun phrase, got {' '.join(words)!r} in {source!r}; see NOUNS",
    )
    article, place = words[0], 1
    adjectives = []
    while place < len(words) and words[place] in ADJECTIVES:
        adjectives.append(words[place])
        place += 1
    require(
        place < len(words) and _one(words[place]) in NOUNS,
        f"grammar: sentence must have a noun there, got {' '.join(words[place:])!r}; see Grammar",
    )
    plural = words[place] not in NOUNS
    stem, vowel = NOUNS[_one(words[place])]
    ending = vowel + ("i" if plural else "")
    result = [ARTICLES[article] + ending, stem + ending, *(ADJECTIVES[one] + ending for one in adjectives)]
    rest = words[place + 1 :]
    if rest and rest[0] == "that":
        verb, rest = _verb(rest[1:], source)
        target, _, rest = _phrase(rest, source)
        result += ["ke", *target, verb + ("en" if plural else "is")]
    return result, plural, rest


def _verb(words: list[str], source: str) -> tuple[str, list[str]]:
    word = words[0] if words else ""
    found = word if word in VERBS else word + "s"
    require(
        found in VERBS, f"grammar: sentence must have a verb there, got {word!r} in {source!r}; see VERBS"
    )
    return VERBS[found], words[1:]


def _one(word: str) -> str:
    """The one of which a noun says many; other words as they are."""
    return MANY.get(word, word)


class _Draw:
    """Choices out of a generator, drawn in bulk."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.numbers: list[float] = []

    def _next(self) -> float:
        if not self.numbers:
            self.numbers = torch.rand(4096, generator=self.generator, device=self.generator.device).tolist()
        return self.numbers.pop()

    def chance(self, share: float) -> bool:
        """True with this probability."""
        return self._next() < share

    def one(self, words: list[str]) -> str:
        """One of the words."""
        return words[int(self._next() * len(words))]
