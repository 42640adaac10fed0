"""Lists of numbers as text, the form that they have in a spec."""

import math

from mapformers.core.errors import require


def numbers_in(name: str, option: str, text: str) -> list[float]:
    """ "-1,1" as [-1.0, 1.0]. Raises MapformersError for anything else."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    require(
        bool(numbers) and all(map(math.isfinite, numbers)),
        f"{name}: {option} must be numbers between commas, got {text!r}; write '1,3' for example",
    )
    return numbers
