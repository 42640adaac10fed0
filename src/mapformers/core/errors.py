"""The one exception type of the library, and how its messages read."""

import difflib
from collections.abc import Iterable


class MapformersError(ValueError):
    """Bad input. The message is one line: `<who>: <input or option> <rule>, got <value>; <remedy>`."""


def require(condition: bool, message: str) -> None:
    """Raise MapformersError(message) unless `condition` holds."""
    if not condition:
        raise MapformersError(message)


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """The names in `known` that look most like `name`, as text for an error message."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.0)
    return ", ".join(close) if close else "nothing"


def require_known(who: str, what: str, name: str, known: Iterable[str]) -> None:
    """Raise MapformersError with the three nearest names unless `name` is one of `known`."""
    names = list(known)
    if name not in names:  # the nearest are looked for only then: that takes far longer than the lookup
        raise MapformersError(f"{who}: {what} is unknown, got {name!r}; nearest: {nearest(name, names)}")
