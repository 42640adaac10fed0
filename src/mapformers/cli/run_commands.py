"""mapformers train, eval, generate."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

SOURCES = "stdlib (Python's own library), a file, a folder, a glob in quotes, or hf:NAME[,CONFIG]"


def train(
    preset: Annotated[
        str | None, typer.Argument(help="demo, laptop, ... (mapformers list)", show_default=False)
    ] = None,
    data: Annotated[str | None, typer.Option(help=SOURCES + " [default: stdlib]", metavar="SOURCE")] = None,
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
    stage: Annotated[int, typer.Option(help="of a recipe in stages (longformer-text8)", metavar="N")] = 1,
) -> None:
    """Train a model on bytes, score it, and write report.html.

    \b
    Examples:
      mapformers train demo --data stdlib --output runs/demo
      mapformers train laptop --data book.txt --output runs/book --set data.context=1024
      mapformers train --output runs/demo --resume
      mapformers train demo --data letters.txt --from runs/demo --output runs/letters
      torchrun --nproc-per-node 2 -m mapformers.cli train demo --output runs/two
    """
    from mapformers.train.run import Request
    from mapformers.train.run import train as run_training

    results = run_training(
        Request(preset, output, data, tuple(set_ or ()), max_steps, seed, resume, stage, start_from)
    )
    if results is not None:
        print(_summary(output, results))


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
    """Bits per byte over every byte but the first, with a sliding context.

    With --prefix-only, the first N positions are scored again token by token: a model that is strictly
    causal agrees.

    \b
    Examples:
      mapformers eval runs/demo
      mapformers eval runs/demo --data letter.txt --stride 256
      mapformers eval runs/demo --prefix-only 500 --json
    """
    from mapformers.train.assess import assess

    tick = _tick if sys.stderr.isatty() and not as_json else None
    result = assess(run, data, split, prefix_only, stride, tick)
    if tick is not None:
        print("\r" + " " * 20 + "\r", end="", file=sys.stderr)
    print(json.dumps(result, indent=1) if as_json else _score(result))


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
    from mapformers.train.generate import generate_bytes
    from mapformers.train.loading import load_trained

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    model = load_trained(run).model
    write(prompt)
    generate_bytes(model, prompt, max_new_tokens, temperature, seed, write)
    write("\n")


def _tick(share: float) -> None:
    print(f"\rscoring {share:4.0%}", end="", file=sys.stderr, flush=True)


def _summary(output: Path, results: dict[str, Any]) -> str:
    test, prefix, scores = results["test"], results["prefix"], results["baselines"]
    return "\n".join(
        [
            f"held-out bits per byte, {test['bytes']:,} bytes, context {test['context']:,}, stride "
            f"{test['stride']:,}:",
            f"  this model, step {results['step']:<10,} {test['bits_per_byte']:7.3f}",
            f"  unigram                     {scores['unigram']:7.3f}",
            f"  order-5 n-gram              {scores['ngram']:7.3f}",
            f"  xz given the training bytes {scores['xz']:7.3f}",
            _agreement(prefix["prefix_only"], prefix["teacher_forced"], prefix),
            f"report: {output / 'report.html'}",
            "next:",
            f"  mapformers eval {output} --prefix-only 500",
            f'  mapformers generate {output} --prompt "def " --max-new-tokens 300',
        ]
    )


def _score(result: dict[str, Any]) -> str:
    lines = [
        f"{result['bits_per_byte']:.4f} bits per byte over {result['bytes']:,} bytes ({result['split']} of "
        f"{result['source']}), "
        f"context {result['context']:,}, stride {result['stride']:,}, step {result['step']:,}"
    ]
    if "positions" in result:
        lines.append(
            _agreement(result["prefix_only_bits_per_byte"], result["teacher_forced_on_those"], result)
        )
    return "\n".join(lines)


def _agreement(alone: float, forced: float, check: dict[str, Any]) -> str:
    verdict = "they agree" if check["agrees"] else "they do NOT agree: the model sees what it should not"
    return (
        f"prefix-only {alone:.5f}, teacher-forced {forced:.5f} on the first {check['positions']:,} "
        "positions: "
        f"difference {check['difference']:.1e}, {verdict}"
    )
