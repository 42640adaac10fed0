"""Where regions and places lie: rows of regions, and in each region places in columns; nothing overlaps."""

from dataclasses import dataclass

from mapformers.core.card import Card

# The survey's families by row, each with its number of columns.
ROWS: tuple[tuple[tuple[str, int], ...], ...] = (
    (("baseline", 1), ("sparse, position-based", 3), ("sparse, content-based", 2)),
    (("linearised", 2), ("prototype", 1), ("compressed memory", 2), ("low rank", 1)),
    (("attention with prior", 3), ("improved multi-head", 3)),
)
CELL, LINE, PAD, TITLE, GAP = 220, 54, 16, 44, 22  # units of the drawing
RADIUS = 9


@dataclass(frozen=True)
class Region:
    """A family: its name, and its rectangle."""

    name: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Place:
    """An entry: where its dot is; the label begins to the right of it."""

    name: str
    region: str
    x: float
    y: float


@dataclass(frozen=True)
class Layout:
    """The drawing."""

    width: float
    height: float
    regions: tuple[Region, ...]
    places: tuple[Place, ...]


def region_of(card: Card) -> str:
    """The family without what stands in brackets behind it."""
    return card.family.partition(" (")[0]


def layout(cards: tuple[Card, ...]) -> Layout:
    """Every card in its region, in the order of the catalogue."""
    members: dict[str, list[Card]] = {}
    for card in cards:
        members.setdefault(region_of(card), []).append(card)
    regions: list[Region] = []
    places: list[Place] = []
    y, width = 0.0, 0.0
    for row in ROWS:
        x, tallest = 0.0, 0.0
        for name, columns in row:
            some = members.pop(name, [])
            lines = -(-len(some) // columns)
            wide, tall = columns * CELL + 2 * PAD, TITLE + lines * LINE + PAD
            regions.append(Region(name, x, y, wide, tall))
            for i, card in enumerate(some):
                column, line = divmod(i, lines)
                at = x + PAD + column * CELL + RADIUS + 3, y + TITLE + line * LINE + LINE / 2
                places.append(Place(card.name, name, *at))
            x, tallest = x + wide + GAP, max(tallest, tall)
        width, y = max(width, x - GAP), y + tallest + GAP
    assert not members, f"these families have no region: {sorted(members)}"
    return Layout(width, y - GAP, tuple(regions), tuple(places))
