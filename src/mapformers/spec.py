"""Specs in text: `routing(clusters=16, window=128):4 + band(window=128):4`."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Any

from mapformers.core.errors import MapformersError, require

_PART = re.compile(r"\s*([A-Za-z_]\w*)\s*(?:\((.*)\))?\s*(?::\s*(\d+))?\s*", re.DOTALL)


@dataclass(frozen=True)
class Part:
    """One name with its options, and the number of heads it takes (None = not said)."""

    name: str
    options: dict[str, Any]
    heads: int | None = None


def parse(text: str) -> tuple[Part, ...]:
    """The parts of a spec, in order. Raises MapformersError naming the part that cannot be read."""
    require(
        isinstance(text, str) and bool(text.strip()),
        f"spec: must be text like 'band(window=128)', got {text!r}; name one",
    )
    return tuple(_part(piece, text) for piece in _split(text, "+"))


def shares_of(parts: tuple[Part, ...], heads: int) -> list[int]:
    """Heads of each part: as said, or all of them for a single part. Raises MapformersError unless they
    sum to `heads`.
    """
    if len(parts) == 1 and parts[0].heads is None:
        return [heads]
    shares = [part.heads for part in parts]
    said = [share for share in shares if share is not None]
    require(
        len(said) == len(shares) and all(said) and sum(said) == heads,
        f"spec: heads of all parts must be given and sum to {heads}, got {shares}; write "
        "name(...):count for each",
    )
    return said


def _part(piece: str, text: str) -> Part:
    match = _PART.fullmatch(piece)
    if match is None:
        raise MapformersError(
            f"spec: cannot read {piece.strip()!r} in {text!r}; write name(option=value, ...):heads"
        )
    name, inside, heads = match.groups()
    options: dict[str, Any] = {}
    for item in _split(inside or "", ","):
        if not item.strip():
            continue
        key, equals, value = item.partition("=")
        require(
            bool(equals) and key.strip().isidentifier() and bool(value.strip()),
            f"{name}: options must read option=value, got {item.strip()!r}; for example window=128",
        )
        require(key.strip() not in options, f"{name}: {key.strip()} is given twice, got {text!r}; keep one")
        options[key.strip()] = _value(value.strip())
    return Part(name, options, None if heads is None else int(heads))


def _value(text: str) -> Any:
    """A Python literal, true / false / none, or a bare word."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        require(
            text.replace("-", "_").isidentifier(),
            f"spec: value must be a number or a word, got {text!r}; quote it",
        )
        return text


def _split(text: str, mark: str) -> list[str]:
    """Split at `mark` outside brackets and quotes."""
    pieces, depth, current, quote = [], 0, "", ""
    for letter in text:
        if letter in "'\"" and quote in ("", letter):
            quote = "" if quote else letter
        if not quote:
            depth += (letter in "([") - (letter in ")]")
        if letter == mark and depth == 0 and not quote:
            pieces.append(current)
            current = ""
        else:
            current += letter
    require(not quote, f"spec: quotes must close, got {text!r}; check the quotes")
    require(depth == 0, f"spec: brackets must close, got {text!r}; check the brackets")
    return [*pieces, current]
