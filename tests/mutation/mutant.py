"""One injected bug."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """`old` stands once in `file` and becomes `new`; `tests` are arguments of pytest, `only` its -k."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    only: str = ""

    @property
    def arguments(self) -> list[str]:
        """What to hand to pytest."""
        return [*self.tests, *(["-k", self.only] if self.only else [])]
