"""mapformers list, show."""

import itertools
import json
import sys
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

PICTURE_TOKENS = 32


def list_entries(
    as_json: Annotated[bool, typer.Option("--json", help="print the cards as a JSON array")] = False,
) -> None:
    """Everything in the catalogue, and the presets.

    \b
    Examples:
      mapformers list
      mapformers list --json
    """
    from mapformers.catalog import catalog
    from mapformers.train.presets import load_preset, preset_names

    cards = [card.as_dict() for card in catalog()]
    if as_json:
        print(json.dumps(cards, indent=1))
        return
    for family, group in itertools.groupby(cards, key=lambda card: (card["kind"], card["family"])):
        print(f"{family[1]} ({family[0]})")
        for card in group:
            print(_row(card["name"], card["summary"]))
    print("presets (mapformers train PRESET)")
    for name in preset_names():
        print(_row(name, load_preset(name).summary))


def show(
    name: Annotated[
        str, typer.Argument(help='an entry, a spec such as "band(window=4)", or a preset', metavar="NAME")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    output: Annotated[
        Path | None, typer.Option(help="write the pattern as .svg or .png", metavar="FILE")
    ] = None,
) -> None:
    """The card of an entry with its options and its pattern; or the layers and the size of a preset.

    \b
    Examples:
      mapformers show routing
      mapformers show "band(window=4)" --output band.svg
      mapformers show routing-enwik8 --json
    """
    from mapformers.core.errors import require
    from mapformers.train.presets import preset_names

    if name in preset_names():
        require(
            output is None,
            f"show: --output draws patterns of mechanisms, got the preset {name}; leave it out",
        )
        facts = preset_facts(name)
        print(json.dumps(facts, indent=1) if as_json else _preset_text(facts))
        return
    entry, options = _find(name, preset_names())
    drawn = _pattern(entry, options) if output is not None or _drawable(entry, as_json) else None
    if output is not None and drawn is not None:
        from mapformers.report.pattern import save_picture

        save_picture(drawn[0], output, f"{entry.card.name} {drawn[1]}".strip())
    print(json.dumps(entry.card.as_dict(), indent=1) if as_json else _card_text(entry.card.as_dict()))
    if drawn is not None and not as_json:
        from mapformers.report.pattern import text_picture

        print(
            f"\npattern of {PICTURE_TOKENS} random tokens {drawn[1]} "
            "(row = query, column = key, darker = more weight)"
        )
        print(text_picture(drawn[0]))
    if output is not None:
        print(f"written: {output}", file=sys.stderr)


def _drawable(entry: Any, as_json: bool) -> bool:
    return entry.card.kind == "mechanism" and not as_json


def preset_facts(name: str) -> dict[str, Any]:
    """A preset with the fields of a card, its settings, and its exact number of parameters.

    Allocates no weights.
    """
    from mapformers.train.models import config_of, parameter_count
    from mapformers.train.presets import load_preset

    preset = load_preset(name)
    config = config_of(preset)
    return {
        "name": name,
        "kind": "model",
        "family": "preset",
        "paper": "",
        "formula": "",
        "causal": "strict" if getattr(config, "causal", False) else "refuses",
        "supports": _supports(config),
        "options": [],
        "cost": "",
        "summary": preset.summary,
        "parameters": parameter_count(preset),
        "layers": getattr(config, "layers", []),
        **{key: value for key, value in preset.as_dict().items() if key not in ("name", "summary")},
    }


def _supports(config: Any) -> list[str]:
    from mapformers.train.models import decodes

    if not getattr(config, "causal", False):
        return ["bidirectional", "padding"]
    return ["causal", "decode"] if decodes(config) else ["causal"]


def _find(text: str, presets: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
    """The catalogue entry of a name or spec, and the options in it."""
    from mapformers.catalog import CATALOG
    from mapformers.core.errors import require, require_known
    from mapformers.spec import parse

    by_name = {entry.card.name: entry for entry in CATALOG}  # type: ignore[attr-defined]
    require_known("show", "name", text.partition("(")[0].strip(), [*by_name, *presets])
    shares = parse(text)
    require(len(shares) == 1, f"show: NAME must be one entry, got {len(shares)}; show them one by one")
    return by_name[shares[0].name], dict(shares[0].options)


def _pattern(entry: Any, options: dict[str, Any]) -> tuple[Any, str]:
    """[N, M] weights of a mechanism on random tokens, and the options that they were made with, as text."""
    from mapformers.core.errors import require
    from mapformers.report.samples import sample_weights, small_options

    card = entry.card
    require(
        card.kind == "mechanism",
        f"show: a pattern needs a mechanism, got the {card.kind} {card.name}; leave --output out",
    )
    used = {**small_options(card), **options}
    text = ", ".join(f"{key}={value}" for key, value in used.items())
    return sample_weights(card, used, PICTURE_TOKENS), f"with {text}" if text else ""


def _card_text(card: dict[str, Any]) -> str:
    lines = [f"{card['name']} ({card['kind']}): {card['summary']}"]
    lines += [f"  {key:<9} {card[key]}" for key in ("family", "paper", "formula", "cost", "causal")]
    lines.append(f"  {'supports':<9} {', '.join(card['supports'])}")
    if card["options"]:
        lines.append("options")
        lines += [
            f"  {one['name']}: {one['type']} = {one['default']!r}\n      {one['meaning']}"
            for one in card["options"]
        ]
    return "\n".join(lines)


def _preset_text(facts: dict[str, Any]) -> str:
    lines = [
        f"{facts['name']}: {facts['summary']}",
        f"  parameters {facts['parameters']:,}",
        *(["layers"] if facts["layers"] else []),
    ]
    number = 1
    for layer, group in itertools.groupby(facts["layers"]):
        count = len(list(group))
        span = f"{number}" if count == 1 else f"{number}-{number + count - 1}"
        lines.append(f"  {span:<6} " + ", ".join(f"{key} {value}" for key, value in layer.items()))
        number += count
    for section in ("model", "data", "optimiser", "training"):
        values = {key: value for key, value in facts[section].items() if key != "layers"}
        lines.append(section)
        lines += [f"  {key} = {value}" for key, value in values.items()]
    if facts["deviations"]:
        lines += ["deviations from what was published", *(f"  - {text}" for text in facts["deviations"])]
    lines.append(f"start it: mapformers train {facts['name']} --output runs/{facts['name']}")
    return "\n".join(_wrapped(line) for line in lines)


def _wrapped(line: str) -> str:
    """A line of at most 80 columns; what does not fit goes on below, further in."""
    inset = " " * (len(line) - len(line.lstrip()) + 4)
    return textwrap.fill(line, 80, subsequent_indent=inset, break_long_words=False, break_on_hyphens=False)


def _row(name: str, summary: str) -> str:
    """A line of `list`; what does not fit into 80 columns goes on below."""
    return textwrap.fill(f"  {name:<21} {summary}", width=80, subsequent_indent=" " * 24)
