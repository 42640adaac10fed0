"""Published forms whose choice of past keys depends on later tokens: how they warn, and how they refuse."""

import warnings

from mapformers.core.errors import require


def warn_of_leak(allowed: bool, name: str, option: str) -> None:
    """Warn somebody who passed allow_selection_leak=True; `option` is what it allows."""
    if allowed:
        warnings.warn(
            f"{name}: allow_selection_leak=True lets {option} choose past keys by future tokens; "
            "teacher-forced losses come out too good, and generation does not reach them",
            stacklevel=3,
        )


def refuse_leak(leaks: bool, name: str, option: str, instead: str) -> None:
    """Refuse causal=True where it would not be strict."""
    require(
        not leaks,
        f"{name}: {option} leaks the future under causal=True, got causal=True; "
        f"use {instead}, or pass allow_selection_leak=True to study the leak",
    )
