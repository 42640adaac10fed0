"""Cards: what a catalogue entry says about itself. Everything that lists mechanisms is derived from them."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from mapformers.core.errors import require_known

Kind = Literal["mechanism", "score", "project", "merge", "block", "loss", "model"]

# What a card may claim, and what it means. The contract suite tests each claim, and each refusal.
CAPABILITIES = {
    "bidirectional": "runs with causal=False",
    "causal": "runs with causal=True, strictly",
    "padding": "takes key_is_real",
    "segments": "takes packed documents",
    "cross": "queries and keys may differ in number (context=)",
    "decode": "init_state / step equal the parallel form",
    "grouped": "takes fewer key/value heads than query heads",
    "rotary": "takes rotary positions on q and k",
    "score": "takes pointwise score terms",
    "rows_sum_to_one": "dense_weights rows sum to one (or to zero where nothing is seen)",
}


@dataclass(frozen=True)
class Option:
    """One field of a config: name, type as text, default, meaning."""

    name: str
    type: str
    default: Any
    meaning: str


@dataclass(frozen=True)
class Card:
    """What a catalogue entry is, costs and can do. `options` is filled in from its config dataclass."""

    name: str
    family: str
    paper: str
    formula: str
    cost: str
    summary: str
    kind: Kind = "mechanism"
    causal: Literal["strict", "refuses"] = "strict"
    supports: frozenset[str] = frozenset()
    options: tuple[Option, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The card as plain data for JSON."""
        plain = dataclasses.asdict(self)
        plain["supports"] = sorted(self.supports)
        plain["options"] = [dataclasses.asdict(option) for option in self.options]
        return plain


def capabilities(*names: str) -> frozenset[str]:
    """The `supports` of a card. Raises MapformersError for a name that is not in CAPABILITIES."""
    for name in names:
        require_known("card", "capability", name, CAPABILITIES)
    return frozenset(names)


# What follows when every plan is made of Windows under one softmax.
RANGES = capabilities(
    *("bidirectional", "causal", "padding", "segments", "decode"),
    *("grouped", "rotary", "score", "rows_sum_to_one"),
)


def option(default: Any, meaning: str) -> Any:
    """A config field with its default and its meaning, written once."""
    return dataclasses.field(default=default, metadata={"meaning": meaning})


def options_of(config: type) -> tuple[Option, ...]:
    """The options of a config dataclass."""
    return tuple(
        Option(f.name, _type_name(f.type), f.default, f.metadata.get("meaning", ""))
        for f in dataclasses.fields(config)
    )


def _type_name(hint: Any) -> str:
    """`int`, `bool`, or the values of a Literal: `pre | post`."""
    if get_origin(hint) is Literal:
        return " | ".join(map(str, get_args(hint)))
    return hint if isinstance(hint, str) else str(hint.__name__)
