"""mapformers audit."""

import json
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mapformers.measure.audits import Audited, Question

FAILED = 1  # the exit code when a check failed


def audit(
    names: Annotated[
        list[str] | None,
        typer.Argument(help='entries or specs such as "band(window=4)", or all', show_default=False),
    ] = None,
    module: Annotated[
        str | None, typer.Option(help="a module of any package that is installed", metavar="PACKAGE:CLASS")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="an argument of that class", metavar="KEY=VALUE")
    ] = None,
    dim: Annotated[int | None, typer.Option(help="it takes vectors [batch, tokens, D]", metavar="D")] = None,
    vocab: Annotated[int | None, typer.Option(help="it takes token ids below V", metavar="V")] = None,
    mask: Annotated[
        str | None, typer.Option(help="its argument for a mask, True = real", metavar="NAME")
    ] = None,
    causal: Annotated[
        bool | None, typer.Option("--causal/--bidirectional", help="whether it is meant to be causal")
    ] = None,
    peers: Annotated[bool, typer.Option("--peers", help="all known packages that are installed")] = False,
    length: Annotated[int, typer.Option(help="tokens", metavar="N")] = 64,
    seed: Annotated[int, typer.Option(help="of weights and inputs", metavar="S")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    output: Annotated[Path | None, typer.Option(help="write the result there", metavar="FILE")] = None,
) -> int:
    """Does the future leak, does padding matter, do rows mix, does decoding agree?

    Inputs are changed where they must not matter, and outputs that should stay are compared: in the map's own
    entries, and in any module of yours or of others. Leaves with exit code 1 when a check failed.

    \b
    Examples:
      mapformers audit routing
      mapformers audit all
      mapformers audit --module reformer_pytorch:Reformer
      mapformers audit --module my_model:Layer --set dim=32 --dim 32 --mask mask
      mapformers audit --peers --json
    """
    from mapformers.measure.audits import Question

    question = None
    if module is not None:
        question = Question(module, _arguments(set_ or []), causal, dim, vocab, mask)
    else:
        given = {"--set": set_, "--dim": dim, "--vocab": vocab, "--mask": mask, "--causal": causal}
        _refuse_without_module(given)
    found = list(_with_progress(_audited(names or [], question, peers, length, seed)))
    _show(found, {"length": length, "seed": seed}, as_json, output)
    return 0 if all(one.report.passed for one in found) else FAILED


def _audited(
    names: list[str], question: "Question | None", peers: bool, length: int, seed: int
) -> "Iterator[tuple[str, Callable[[], Audited]]]":
    """What is to be audited, by name; everything is looked up before the first one runs."""
    from mapformers.core.errors import require
    from mapformers.measure import audits
    from mapformers.measure.peers import installed

    wanted = list(audits.names()) if names == ["all"] else names
    require(
        bool(wanted or question or peers),
        "audit: a NAME must be given, got none; write mapformers audit all, or --module, or --peers",
    )
    for name in wanted:
        audits.check_name(name)
    others = [audits.Question(peer.target, {}) for peer in installed()] if peers else []
    for name in wanted:
        yield name, lambda name=name: audits.audit_entry(name, length, seed)
    for one in [*([question] if question else []), *others]:
        yield one.target, lambda one=one: audits.audit_module(one, length, seed)


def _with_progress(todo: "Iterator[tuple[str, Callable[[], Audited]]]") -> "Iterator[Audited]":
    shown = sys.stderr.isatty()
    for name, run in todo:
        if shown:
            print(f"\r{name:<60}", end="", file=sys.stderr, flush=True)
        yield run()
    if shown:
        print("\r" + " " * 60 + "\r", end="", file=sys.stderr)


def _text(found: "list[Audited]") -> str:
    """One report whole; several as a table with a sentence for each failure."""
    from mapformers.measure.audits import summary

    if len(found) == 1:
        built = textwrap.fill(f"built as {found[0].built}", 80, subsequent_indent="  ")
        return f"{found[0].report}\n{built}"
    failed = [one for one in found if not one.report.passed]
    lines = [
        summary(found),
        "",
        "numbers: largest change of outputs that should stay, beside the largest output",
        "- = not checked, as there is nothing of the kind",
    ]
    for one in failed:
        lines.append(one.report.subject)
        for text in one.report.explanations:
            lines += textwrap.wrap(text, 80, initial_indent="  - ", subsequent_indent="    ")
    lines.append(f"{len(found) - len(failed)} of {len(found)} passed")
    return "\n".join(lines)


def _arguments(settings: list[str]) -> dict[str, Any]:
    """KEY=VALUE with YAML values."""
    import yaml

    from mapformers.core.errors import MapformersError, require

    values = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        require(bool(equals and key), f"--set: needs key=value, got {setting!r}; write --set dim=64")
        try:
            values[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise MapformersError(
                f"--set: {key} must be YAML, got {text!r}; quote it for the shell"
            ) from None
    return values


def _refuse_without_module(given: dict[str, Any]) -> None:
    from mapformers.core.errors import require

    for name, value in given.items():
        require(value in (None, []), f"audit: {name} goes with --module, got {value} alone; name a module")


def _show(found: "list[Audited]", settings: dict[str, Any], as_json: bool, path: Path | None) -> None:
    from mapformers.measure.facts import command_line
    from mapformers.measure.record import write_record

    body = {**settings, "subjects": [one.as_dict() for one in found]}
    if path is not None:
        write_record(path, "audit", command_line("mapformers"), body)
        print(f"written: {path}", file=sys.stderr)
    print(json.dumps(body, indent=1) if as_json else _text(found))
