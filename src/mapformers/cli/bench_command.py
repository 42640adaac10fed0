"""mapformers bench."""

import sys
from pathlib import Path
from typing import Annotated

import typer

RED = 1  # the exit code when a mechanism deviates from its definition


def bench(
    mechanisms: Annotated[
        str, typer.Option(help='names or specs such as "band(window=64)", or all', metavar="A,B,..")
    ] = "band,routing,linear",
    lengths: Annotated[str, typer.Option(help="tokens; 1k = 1,024", metavar="N,N,..")] = "1k,4k",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float64", metavar="TYPE")] = "float32",
    kernel: Annotated[str, typer.Option(help="native, or torch without it", metavar="KERNEL")] = "native",
    rounds: Annotated[int, typer.Option(help="timed runs of each", metavar="N")] = 5,
    peers: Annotated[bool, typer.Option("--peers", help="beside packages of others, if installed")] = False,
    json_: Annotated[
        Path | None, typer.Option("--json", help="keep the result there, point by point", metavar="FILE")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with what FILE holds")] = False,
) -> int:
    """Time, memory and growth of mechanisms, beside torch's full attention.

    Each point is measured in a process of its own: first its memory, then whether it equals its dense
    definition (else no time is shown, and the exit code is 1), then times, alternated with full attention.
    A run that was cut off goes on with --resume.

    \b
    Examples:
      mapformers bench
      mapformers bench --mechanisms "routing,routing(clusters=8)" --lengths 2k,8k
      mapformers bench --mechanisms all --lengths 1k,4k,16k --json bench.json
      mapformers bench --mechanisms band --lengths 1k --peers
    """
    from mapformers.measure.bench import Bench, reds, run_bench
    from mapformers.measure.bench_peers import installed_peers, missing_peers
    from mapformers.measure.bench_table import bench_table
    from mapformers.measure.facts import command_line, machine
    from mapformers.measure.specs import chosen

    others = installed_peers() if peers else ()
    asked = Bench(chosen(mechanisms), _lengths(lengths), dtype, kernel, rounds, others)
    body = run_bench(asked, json_, command_line("mapformers"), _say, resume)
    print(bench_table(body, machine()))
    if peers and missing_peers():
        print(f"not installed: {', '.join(missing_peers())}")
    if json_ is not None:
        print(f"written: {json_}", file=sys.stderr)
    return RED if reds(body["points"]) else 0


def _lengths(text: str) -> tuple[int, ...]:
    """1k,4096 -> (1024, 4096), rising, each once."""
    from mapformers.core.errors import MapformersError

    found = set()
    for piece in text.lower().split(","):
        word = piece.strip()
        digits, factor = (word[:-1], 1024) if word.endswith("k") else (word, 1)
        if not digits.isdigit():
            raise MapformersError(
                f"bench: --lengths must be numbers as 1k,4096, got {text!r}; mend {piece!r}"
            )
        found.add(int(digits) * factor)
    return tuple(sorted(found))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
