"""The code blocks of a Markdown file."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block: the heading above it, its language, its text, and the line it begins at."""

    heading: str
    language: str
    text: str
    line: int

    def __str__(self) -> str:
        return f"{self.heading.strip(' .')}, line {self.line}"


def blocks(path: Path, language: str) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    found = []
    for match in _FENCED.finditer(text):
        above = text[: match.start()]
        heading = _HEADING.findall(_FENCED.sub("", above))[-1]
        found.append(Block(heading, match[1], match[2], above.count("\n") + 2))
    return [block for block in found if block.language == language]
