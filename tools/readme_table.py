"""The README's table of everything in the catalogue, made from the cards.

python tools/readme_table.py            print it
python tools/readme_table.py --write    put it between the markers in README.md
"""

import sys
from itertools import groupby
from pathlib import Path

from mapformers.catalog import catalog
from mapformers.core.card import Card

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN = "<!-- made by tools/readme_table.py: begin -->\n"
END = "<!-- made by tools/readme_table.py: end -->\n"
HEADINGS = {
    "mechanism": 'Mechanisms: `mf.attention("NAME(...)", ...)`',
    "score": "Score terms: `score=`",
    "project": "Projections: `project=`",
    "merge": "Merges: `merge=`",
    "block": 'Blocks: `mf.block("NAME(...)", ...)`',
    "loss": "Losses",
    "model": "Models",
}


def table() -> str:
    """One Markdown table for each kind, in the order of the catalogue."""
    parts = []
    for kind, cards in groupby(catalog(), key=lambda card: card.kind):
        rows = [row(card) for card in cards]
        parts.append("\n".join([HEADINGS[kind], "", line(list(rows[0])), line(["---"] * len(rows[0]))]))
        parts[-1] += "\n" + "\n".join(line(list(one.values())) for one in rows)
    return "\n\n".join(parts) + "\n"


def row(card: Card) -> dict[str, str]:
    """One entry. Only what has a data flow of its own is causal or not, and decodes or not."""
    facts = {"name": f"`{card.name}`", "what it does": card.summary}
    if card.kind in ("mechanism", "block", "model"):
        facts["causal"] = card.causal
        facts["decodes"] = "yes" if "decode" in card.supports else "no"
    return facts | {"cost": card.cost, "paper": card.paper}


def line(cells: list[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def written() -> str:
    """README.md as it should read."""
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    if "--write" in sys.argv:
        README.write_text(written(), encoding="utf-8")
    else:
        print(table(), end="")
