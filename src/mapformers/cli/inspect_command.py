"""mapformers inspect."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mapformers.train.loading import Trained

SAMPLE = 2000  # bytes of the validation text, where no file is named
KEPT = {"text": 8, "example": 64}  # of each token, where --keep does not say


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
    example: Annotated[
        int | None, typer.Option(help="which example, of models that read such [default: 0]", metavar="K")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train, valid or test [default: test]", metavar="NAME")
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option(help="strongest tokens kept of each [default: 8, of examples 64]", metavar="N"),
    ] = None,
) -> None:
    """What a trained model attends to, as one page that opens from disk.

    Of a language model: tokens in the colours of their clusters; of each token whom it sees, who sees it,
    its cluster mates and what it cost. Of a classifier, a Perceiver, a masked model or one of images: an
    example of its data, and which pixels, samples or bytes each latent reads or each place sees.

    \b
    Examples:
      mapformers inspect runs/demo
      mapformers inspect runs/book --text chapter.txt --output chapter.html
      mapformers inspect runs/book --text book.txt --tokens 10000:14000
      mapformers inspect runs/digits --example 7
    """
    from mapformers.core.errors import require
    from mapformers.train.loading import load_trained

    require(keep is None or 1 <= keep <= 1024, f"inspect: --keep must lie in 1..1024, got {keep}; use 8")
    trained = load_trained(run)
    of_text = {"--text": text, "--tokens": tokens}
    is_text = _is_text(trained, of_text, {"--example": example, "--split": split})
    path = output or trained.run.path / "inspect.html"
    if is_text:
        _inspect_text(trained, text, tokens, keep or KEPT["text"], path)
    else:
        _inspect_example(trained, example or 0, split or "test", keep or KEPT["example"], path)
    print("open it in a browser; it needs no network")


def _is_text(trained: "Trained", of_text: dict[str, object], of_examples: dict[str, object]) -> bool:
    """Whether a run reads a text, and not an example; options of the other kind are refused."""
    from mapformers.core.errors import require
    from mapformers.inspector.example import SHOWN

    task = trained.run.preset.task
    is_text = task == "language-model"
    require(
        is_text or task in SHOWN,
        f"inspect: RUN must be of language-model, {', '.join(SHOWN)}, got one of {task}; inspect another run",
    )
    other = "models that read examples" if is_text else "a language model"
    for option, given in (of_examples if is_text else of_text).items():
        require(given is None, f"inspect: {option} is for {other}, got a run of {task}; leave it out")
    return is_text


def _inspect_text(trained: "Trained", text: Path | None, tokens: str | None, keep: int, path: Path) -> None:
    from mapformers.inspector.page import page_of
    from mapformers.inspector.record import record_text
    from mapformers.tasks.corpus import load_corpus

    said = str(text) if text is not None else "the beginning of its validation text"
    read = _read(text) if text is not None else bytes(load_corpus(trained.run.data).split("valid")[:SAMPLE])
    first, last = _part(tokens, len(read))
    part = f", bytes {first:,} to {last:,}" if tokens else ""
    facts = {
        "title": f"{trained.run.preset.name}: {Path(said).name}",
        "about": f"{_model(trained)}; reads {said}{part}",
    }
    record = record_text(trained.model, read[first:last], keep, facts, _progress)
    size, mean = _write(path, page_of(record)), float(record.bits[1:].mean())
    print(f"{path}: {last - first:,} bytes of text, {size:.1f} MB, {mean:.3f} bits per byte")


def _inspect_example(trained: "Trained", number: int, split: str, keep: int, path: Path) -> None:
    from mapformers.inspector.example import example_of
    from mapformers.inspector.picture import picture_page, record_picture

    example = example_of(trained, number, split)
    facts = {
        "title": f"{trained.run.preset.name}: {example.said}",
        "about": _model(trained),
        "label": "" if example.label is None else trained.model.config.id2label[example.label],
    }
    record = record_picture(trained.model, example, keep, facts, _progress)
    size, shown = _write(path, picture_page(record)), len(record.reads) + len(record.layers)
    kind = "reads" if record.reads else "layers"
    said = f", says {record.answer[0][0]} for {facts['label']}" if record.answer else ""
    print(f"{path}: {example.said}, {shown} {kind}, {size:.1f} MB{said}")


def _model(trained: "Trained") -> str:
    count = sum(parameter.numel() for parameter in trained.model.parameters())
    return f"{trained.run.path.resolve().name}, step {trained.step:,}, {count:,} parameters"


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
