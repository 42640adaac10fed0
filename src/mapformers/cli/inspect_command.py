"""mapformers inspect."""

import sys
from pathlib import Path
from typing import Annotated

import typer

SAMPLE = 2000  # bytes of the validation text, where no file is named


def inspect(
    run: Annotated[Path, typer.Argument(help="a run folder, or one checkpoint in it", metavar="RUN")],
    text: Annotated[
        Path | None, typer.Option(help="what it reads [default: its validation text]", metavar="FILE")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="the page [default: RUN/inspect.html]", metavar="FILE")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="a part of the text, in bytes", metavar="START:END")
    ] = None,
    keep: Annotated[int, typer.Option(help="strongest tokens kept of each", metavar="N")] = 8,
) -> None:
    """What a trained language model attends to in a text, as one page that opens from disk.

    Tokens in the colours of their clusters; of each token whom it sees, who sees it, its cluster mates and
    what it cost; for each head how far it looks. Weights are those that are used, whatever the mechanism.

    \b
    Examples:
      mapformers inspect runs/demo
      mapformers inspect runs/book --text chapter.txt --output chapter.html
      mapformers inspect runs/book --text book.txt --tokens 10000:14000
    """
    from mapformers.core.errors import require
    from mapformers.inspector.page import page_of
    from mapformers.inspector.record import record_text
    from mapformers.tasks.corpus import load_corpus
    from mapformers.train.loading import load_trained

    require(1 <= keep <= 64, f"inspect: --keep must lie in 1..64, got {keep}; use 8")
    trained = load_trained(run)
    preset = trained.run.preset
    require(
        preset.task == "language-model",
        f"inspect: RUN must hold a language model, got one for {preset.task}; inspect another run",
    )
    said = str(text) if text is not None else "the beginning of its validation text"
    read = _read(text) if text is not None else bytes(load_corpus(trained.run.data).split("valid")[:SAMPLE])
    first, last = _part(tokens, len(read))
    count = sum(parameter.numel() for parameter in trained.model.parameters())
    part = f", bytes {first:,} to {last:,}" if tokens else ""
    name = f"{trained.run.path.resolve().name}, step {trained.step:,}, {count:,} parameters"
    facts = {"title": f"{preset.name}: {Path(said).name}", "about": f"{name}; reads {said}{part}"}
    record = record_text(trained.model, read[first:last], keep, facts, _progress)
    path = output or trained.run.path / "inspect.html"
    size, mean = _write(path, page_of(record)), float(record.bits[1:].mean())
    print(f"{path}: {last - first:,} bytes of text, {size:.1f} MB, {mean:.3f} bits per byte")
    print("open it in a browser; it needs no network")


def _read(path: Path) -> bytes:
    from mapformers.core.errors import MapformersError

    try:
        return path.read_bytes()
    except OSError as error:
        raise MapformersError(
            f"inspect: --text {path} must be readable, got {error.strerror or error}; check it"
        ) from None


def _part(tokens: str | None, length: int) -> tuple[int, int]:
    """START:END within a text; either may be left out."""
    from mapformers.core.errors import require

    if tokens is None:
        return 0, length
    start, colon, end = tokens.partition(":")
    fine = bool(colon) and all(not word or word.isdigit() for word in (start, end))
    first, last = (int(start or 0), min(int(end or length), length)) if fine else (0, 0)
    require(
        fine and first + 1 < last,
        f"inspect: --tokens must be START:END within {length:,} bytes, got {tokens}; write 1000:2000",
    )
    return first, last


def _write(path: Path, page: str) -> float:
    """Whole or not at all; returns its size in MB."""
    from mapformers.core.errors import MapformersError
    from mapformers.tasks.corpus import write_text

    try:
        write_text(path, page)
    except OSError as error:
        raise MapformersError(
            f"inspect: --output {path} must be writable, got {error.strerror or error}; choose another file"
        ) from None
    return len(page) / 2**20


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:<40}", end="", file=sys.stderr, flush=True)
