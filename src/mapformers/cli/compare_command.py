"""mapformers compare."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def compare(
    task: Annotated[
        str, typer.Argument(help="stdlib, mqar, passkey, or a preset (mapformers list)", metavar="TASK")
    ],
    attention: Annotated[
        list[str] | None,
        typer.Option(help="repeat it; map stands for a list of causal ones", metavar="SPEC"),
    ] = None,
    seeds: Annotated[int, typer.Option(help="runs of each", metavar="N")] = 3,
    steps: Annotated[int | None, typer.Option(help="of each run [default: the task's]", metavar="N")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="change one setting, in all rows", metavar="KEY=VALUE")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="folder of the runs [default: runs/compare-TASK]", metavar="DIR")
    ] = None,
    json_: Annotated[
        Path | None, typer.Option("--json", help="keep the result there, run by run", metavar="FILE")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="draw it as .svg, .png or .pdf", metavar="FILE")] = None,
    workers: Annotated[int, typer.Option(help="runs at once, a thread each", metavar="N")] = 1,
    allow_unequal: Annotated[
        bool, typer.Option("--allow-unequal", help="parameters may differ by more than 2 %")
    ] = False,
) -> None:
    """Train the same model with one attention after the other: quality, speed, memory, parameters.

    Same start, data, order and steps for all rows of a seed. Every run is an ordinary one in the output
    folder: given again, the command keeps what is finished and goes on with what was cut off.

    \b
    Examples:
      mapformers compare mqar --attention full --attention "band(window=8)"
      mapformers compare stdlib --attention map --workers 2 --json stdlib.json
      mapformers compare listops --attention linear --attention full --seeds 1
    """
    from mapformers.core.errors import require
    from mapformers.measure.facts import command_line
    from mapformers.report.style import ENDINGS
    from mapformers.study.compare import Comparison
    from mapformers.study.compare import compare as run_comparison

    require(
        plot is None or plot.suffix in ENDINGS,
        f"compare: --plot must end in {', '.join(ENDINGS)}, got {plot}; change the ending",
    )
    folder, given = output or Path("runs") / f"compare-{task}", tuple(attention or ())
    asked = Comparison(task, given, folder, seeds, steps, tuple(set_ or ()), workers, allow_unequal)
    _show(run_comparison(asked, json_, command_line("mapformers"), _say), json_, plot)


def _show(body: dict[str, Any], json_: Path | None, plot: Path | None) -> None:
    from mapformers.study.table import compare_table, save_plot

    print(compare_table(body))
    if plot is not None:
        save_plot(body, plot)
    for path in (json_, plot):
        if path is not None:
            print(f"written: {path}", file=sys.stderr)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
