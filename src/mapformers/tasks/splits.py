"""Splits of examples by the SHA-256 of their keys: the same ones on every machine."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

HELD_OUT = 0.1  # share of valid, and of test


def cut(labels: Sequence[str], keys: Sequence[str], shares: Mapping[str, float]) -> tuple[list[str], bool]:
    """The split of each example by the SHA-256 of its key, and whether it had to be done class by class.

    `shares` are the splits in order and add up to 1. Where chance leaves a split without a class that could
    be in it, each class is cut by its rank in the order of the hashes.
    """
    chosen = [_by_share(_digest(key), shares) for key in keys]
    have = Counter(zip(labels, chosen, strict=True))
    counts = Counter(labels)
    if all(have[label, split] for label, n in counts.items() for split in _possible(n, shares)):
        return chosen, False
    members: dict[str, list[int]] = {label: [] for label in counts}
    for place in sorted(range(len(keys)), key=lambda place: _digest(keys[place])):
        members[labels[place]].append(place)
    for places in members.values():
        others = [split for split in _possible(len(places), shares) if split != "train"]
        held_out = max(1, round(len(places) * HELD_OUT))
        line = [split for split in others for _ in range(held_out)]
        line += ["train"] * (len(places) - len(line))
        for place, split in zip(places, line, strict=True):
            chosen[place] = split
    return chosen, True


def _possible(count: int, shares: Mapping[str, float]) -> list[str]:
    """The splits that a class of `count` examples can be in; train first, then test, then valid."""
    order = [split for split in ("train", "test", "valid") if split in shares]
    if count < 3:
        order = [split for split in order if split != "valid"]
    return order[:count]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _by_share(digest: bytes, shares: Mapping[str, float]) -> str:
    share, border = int.from_bytes(digest[:4], "big") / 2**32, 0.0
    for split, part in shares.items():
        border += part
        if share < border:
            return split
    return split  # the sum of the shares may be a rounding error below 1
