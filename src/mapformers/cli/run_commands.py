"""mapformers train, eval, generate."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

SOURCES = "for text: stdlib (Python's own library), a file, a folder, a glob in quotes, or hf:NAME[,CONFIG]"


def train(
    preset: Annotated[
        str | None, typer.Argument(help="demo, laptop, ... (mapformers list)", show_default=False)
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help=SOURCES + "; what else a preset reads says the README", metavar="SOURCE"),
    ] = None,
    output: Annotated[Path, typer.Option(help="the run folder to make", metavar="DIR")] = Path("run"),
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="change one setting", metavar="KEY=VALUE")
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="how many steps; the schedule spans them", metavar="N")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="of the weights and the order of the data", metavar="S")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the newest checkpoint in DIR")] = False,
    start_from: Annotated[
        Path | None, typer.Option("--from", help="start with the weights of this run", metavar="RUN")
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(help="put this attention wherever it can stand (mapformers list)", metavar="SPEC"),
    ] = None,
    stage: Annotated[int, typer.Option(help="of a recipe in stages (longformer-text8)", metavar="N")] = 1,
) -> None:
    """Train a model, score it on data it has not seen, and write report.html.

    \b
    Examples:
      mapformers train laptop --data book.txt --output runs/book --set data.context=1024
      mapformers train --output runs/book --resume
      mapformers train image-classification --data photos/ --output runs/photos
      mapformers train listops --attention "bigbird(block=16)" --output runs/bigbird
      torchrun --nproc-per-node 2 -m mapformers.cli train demo --output runs/two
    """
    from mapformers.train.run import Request
    from mapformers.train.run import train as run_training

    results = run_training(
        Request(
            preset, output, data, tuple(set_ or ()), max_steps, seed, resume, stage, start_from, attention
        )
    )
    if results is not None:
        from mapformers.train.tasks import TASKS

        print("\n".join(TASKS[results["task"]].summary(output, results)))


def evaluate(
    run: Annotated[Path, typer.Argument(help="a run folder, or one checkpoint in it", metavar="RUN")],
    data: Annotated[
        str | None, typer.Option(help=SOURCES + " [default: the run's own]", metavar="SOURCE")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="train, valid, test, english or all [default: test; all of another file or folder]"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    prefix_only: Annotated[
        int | None, typer.Option(help="score N positions again by decoding", metavar="N")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="bytes the context moves on [default: half of it]", metavar="S")
    ] = None,
) -> None:
    """The score of a run: bits per byte of a text, accuracy, or whatever its task is judged by.

    A text is scored over every byte but the first, with a sliding context. With --prefix-only, the first N
    positions are scored again token by token: a model that is strictly causal agrees.

    \b
    Examples:
      mapformers eval runs/demo
      mapformers eval runs/demo --data letter.txt --stride 256
      mapformers eval runs/demo --prefix-only 500 --json
    """
    from mapformers.train.assess import as_text, assess
    from mapformers.train.task import Asked

    tick = _tick if sys.stderr.isatty() and not as_json else None
    result = assess(run, Asked(data, split, prefix_only, stride, tick))
    if tick is not None:
        print("\r" + " " * 20 + "\r", end="", file=sys.stderr)
    print(json.dumps(result, indent=1) if as_json else as_text(result))


def generate(
    run: Annotated[Path, typer.Argument(help="a run folder, or one checkpoint in it", metavar="RUN")],
    prompt: Annotated[str, typer.Option(help="the text to go on from", metavar="TEXT")] = "",
    max_new_tokens: Annotated[int, typer.Option(help="how many bytes to add", metavar="N")] = 300,
    temperature: Annotated[float, typer.Option(help="0 = the likeliest byte each time", metavar="T")] = 0.8,
    seed: Annotated[int, typer.Option(help="same seed, same text", metavar="S")] = 0,
) -> None:
    """Go on from a prompt, byte by byte as the model makes them.

    \b
    Examples:
      mapformers generate runs/demo --prompt "def main(" --max-new-tokens 200
      mapformers generate runs/demo --prompt "import " --temperature 0
    """
    from mapformers.train.loading import load_trained
    from mapformers.train.task import Prompt

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    trained = load_trained(run)
    write(prompt)
    asked = Prompt(prompt, max_new_tokens, temperature, seed, write)
    trained.run.task.generate(trained.model, trained.run.data, asked)
    write("\n")


def _tick(share: float) -> None:
    print(f"\rscoring {share:4.0%}", end="", file=sys.stderr, flush=True)
