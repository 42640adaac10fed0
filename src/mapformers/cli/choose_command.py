"""mapformers choose."""

import json
import re
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mapformers.measure.choose import Choice, Question

SHOWN = 5
UNITS = {"MB": 1.0, "GB": 1024.0, "TB": 1024.0**2}


def choose(
    length: Annotated[str, typer.Option(help="tokens; 64k = 65,536", metavar="N", show_default=False)],
    causal: Annotated[bool, typer.Option("--causal", help="later tokens must not matter")] = False,
    decode: Annotated[bool, typer.Option("--decode", help="token by token; implies --causal")] = False,
    cross: Annotated[bool, typer.Option("--cross", help="queries read another sequence")] = False,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="into a trained model, whose weights are kept")
    ] = False,
    task: Annotated[
        str | None,
        typer.Option(help="language, recall, text-classification, translation, images, audio, series"),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="for a pass of one layer, as 500MB or 8GB", metavar="SIZE")
    ] = None,
    show_all: Annotated[bool, typer.Option("--all", help="show all, and why others are left out")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Which attention for a length and a use, with reasons, and the line to go on with.

    Ranked by the results that come with the package: speed and memory at that length, and accuracy in recall.

    \b
    Examples:
      mapformers choose --length 64k --causal --decode --task language
      mapformers choose --length 16k --pretrained --memory 2GB
      mapformers choose --length 4096 --cross --all
    """
    from mapformers.measure.choose import Question
    from mapformers.measure.choose import choose as rank
    from mapformers.measure.shipped import shipped

    megabytes = None if memory is None else _megabytes(memory)
    question = Question(_tokens(length), causal or decode, decode, cross, pretrained, task, megabytes)
    bench = shipped("bench", "bench")
    found = rank(question, bench, shipped("compare-mqar", "compare"))
    if as_json:
        print(json.dumps({"question": vars(question), "choices": [one.as_dict() for one in found]}, indent=1))
        return
    print("\n".join(_text(question, found, bench, show_all)))


def _text(
    question: "Question", found: "list[Choice]", bench: dict[str, Any] | None, show_all: bool
) -> list[str]:
    fit = [one for one in found if not one.left_out]
    lines = []
    for place, one in enumerate(fit if show_all else fit[:SHOWN], 1):
        lines += textwrap.wrap(f"{place:>2}. {one.spec}", 80, subsequent_indent="    ")
        lines += textwrap.wrap("; ".join(one.reasons), 80, initial_indent="    ", subsequent_indent="    ")
        if one.seconds is not None:
            size = "" if one.memory_mb is None else f", {one.memory_mb:,.0f} MB"
            lines.append(f"    about {_time(one.seconds)} forward and backward{size} (8 heads of 64)")
    if not fit:
        lines.append("nothing fits; drop a condition, or see mapformers choose --all")
    rest = [one for one in found if one.left_out]
    if show_all:
        for one in rest:
            lines += textwrap.wrap(f"left out: {one.name} {one.left_out}", 80, subsequent_indent="    ")
    elif rest:
        lines.append(f"left out: {len(rest)} that cannot; --all shows them and why")
    lines += ["", *_next(question, fit)] if fit else []
    lines.append(_source(bench))
    return lines


def _next(question: "Question", fit: "list[Choice]") -> list[str]:
    """Python and the command for the best one."""
    from mapformers.measure.choose import TASKS

    best, causal = fit[0], ", causal=True" if question.causal else ""
    preset = (
        TASKS[question.task][0] if question.task else "laptop" if question.causal else "text-classification"
    )
    return [
        "next:",
        f"  mapformers train {preset} --output runs/{best.name} \\",
        f'    --attention "{best.spec}"',
        "or in Python:",
        "  attention = mf.attention(",
        f'      "{best.spec}",',
        f"      dim=512, heads=8{causal})",
    ]


def _source(bench: dict[str, Any] | None) -> str:
    if bench is None:
        return "no measured results come with this package: mapformers bench makes them"
    machine = bench["machine"]
    return (
        f"measured {bench['date']} on {machine['processor']}, {machine['threads']} cores (mapformers bench)"
    )


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def _tokens(text: str) -> int:
    from mapformers.core.errors import MapformersError

    match = re.fullmatch(r"(\d+)(k?)", text.strip().lower())
    if match is None:
        raise MapformersError(f"choose: --length must be a number as 4096 or 64k, got {text!r}; mend it")
    return int(match[1]) * (1024 if match[2] else 1)


def _megabytes(text: str) -> float:
    from mapformers.core.errors import MapformersError

    match = re.fullmatch(r"([\d.]+)\s*([MGT]B)", text.strip().upper())
    if match is None or match[1].count(".") > 1:
        raise MapformersError(f"choose: --memory must be a size as 500MB or 8GB, got {text!r}; mend it")
    return float(match[1]) * UNITS[match[2]]
