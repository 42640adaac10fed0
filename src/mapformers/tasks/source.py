"""SOURCE = stdlib | a file | a folder | a glob | hf:NAME[,CONFIG]: which bytes belong to which split,
nothing read yet.

`plan_source` finds the pieces and refuses what cannot be used; `corpus.write_corpus` copies them into one
stream per split.
"""

import glob
import hashlib
import importlib.util
import sysconfig
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mapformers.core.errors import require

SPLITS = {"train": 0.90, "valid": 0.05, "test": 0.05}
FEW_FILES = 20  # with fewer, a split by file would be too uneven
CHUNK = 1 << 20
LEFT_OUT = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "encodings",
    "site-packages",
    "dist-packages",
    "pydoc_data",
    "testing",
    "__pycache__",
}  # near-identical tables, tests, other people's packages
REMEDY = "give stdlib, a file, a folder, a glob in quotes, or hf:NAME[,CONFIG]"


@dataclass(frozen=True)
class Piece:
    """A range of a file: bytes [start, stop)."""

    path: Path
    start: int
    stop: int

    def read(self) -> Iterator[bytes]:
        """Its bytes, at most 1 MiB at a time."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            left = self.stop - self.start
            while left > 0 and (chunk := file.read(min(CHUNK, left))):
                left -= len(chunk)
                yield chunk


@dataclass(frozen=True)
class SourcePlan:
    """What a SOURCE holds: per split what to read, how the split was made, and how many files there are."""

    source: str
    rule: str
    files: int
    splits: dict[str, tuple[Piece, ...]] = field(default_factory=dict)
    texts: Mapping[str, Iterable[str]] = field(default_factory=dict)  # splits that do not come from files

    def stream(self, split: str) -> Generator[bytes, None, None]:
        """The bytes of one split, in order."""
        for piece in self.splits.get(split, ()):
            yield from piece.read()
        for text in self.texts.get(split, ()):
            yield text.encode("utf-8", "replace")

    def size(self, split: str) -> int | None:
        """Bytes of one split, None where only reading it would tell."""
        if split in self.texts:
            return None
        return sum(piece.stop - piece.start for piece in self.splits.get(split, ()))

    @property
    def names(self) -> tuple[str, ...]:
        """The splits there are."""
        return tuple(dict.fromkeys([*self.splits, *self.texts]))


def plan_source(source: str) -> SourcePlan:
    """The plan for a SOURCE. Raises MapformersError naming what is missing, empty or unreadable."""
    require(bool(source), f"data: SOURCE must not be empty, got ''; {REMEDY}")
    if source == "stdlib":
        return _plan_stdlib()
    if source.startswith("hf:"):
        from mapformers.tasks.hub_text import plan_hub

        return plan_hub(source)
    path = Path(source).expanduser()
    if path.is_file():
        return _plan_files(source, [path], path.parent)
    if path.is_dir():
        files = [p for p in path.rglob("*") if not _hidden(p.relative_to(path)) and p.is_file()]
        require(bool(files), f"data: folder {source} must hold files, got none; {REMEDY}")
        return _plan_files(source, files, path)
    if glob.has_magic(source):
        files = [Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file()]
        require(
            bool(files), f"data: no file matches {source}, got 0 matches; check the pattern and its quotes"
        )
        return _plan_files(source, files, _common_root(files))
    require(not path.exists(), f"data: {source} must be a file or a folder, got something else; {REMEDY}")
    require(False, f"data: SOURCE must exist, got {source}, which does not; {REMEDY}")
    raise AssertionError("unreachable")


def split_of(relative_path: str) -> str:
    """The split of a file: the first four bytes of the SHA-256 of its relative path, read as a fraction of
    1.
    """
    share = int.from_bytes(hashlib.sha256(relative_path.encode()).digest()[:4], "big") / 2**32
    if share < SPLITS["train"]:
        return "train"
    return "valid" if share < SPLITS["train"] + SPLITS["valid"] else "test"


def _plan_files(source: str, files: list[Path], root: Path) -> SourcePlan:
    sizes = {path: _readable_size(path) for path in files}
    require(
        sum(sizes.values()) > 0,
        f"data: {source} must not be empty, got 0 bytes; give a source with text in it",
    )
    if len(files) >= FEW_FILES:
        splits = _by_hash(sizes, root)
        if all(
            sum(piece.stop for piece in pieces) >= 2 for pieces in splits.values()
        ):  # chance may leave one empty
            return SourcePlan(source, "90/5/5 by the SHA-256 of each relative path", len(files), splits)
    rule = "first 90 % to train, next 5 % to valid, last 5 % to test, by position in the stream"
    return SourcePlan(source, rule, len(files), _by_position(sizes))


def _by_hash(sizes: dict[Path, int], root: Path) -> dict[str, tuple[Piece, ...]]:
    """Whole files; inside a split in the order of their hashes, so that the first bytes are a fair sample."""
    splits: dict[str, list[Piece]] = {name: [] for name in SPLITS}
    names = {path: path.relative_to(root).as_posix() for path in sizes}
    for path in sorted(sizes, key=lambda p: hashlib.sha256(names[p].encode()).digest()[4:]):
        splits[split_of(names[path])].append(Piece(path, 0, sizes[path]))
    return {name: tuple(pieces) for name, pieces in splits.items()}


def _by_position(sizes: dict[Path, int]) -> dict[str, tuple[Piece, ...]]:
    """One stream of all files in the order of their names, cut in three."""
    total = sum(sizes.values())
    held_out = max(int(total * SPLITS["test"]), min(total // 3, 2))
    borders = {
        "train": (0, total - 2 * held_out),
        "valid": (total - 2 * held_out, total - held_out),
        "test": (total - held_out, total),
    }
    splits: dict[str, list[Piece]] = {name: [] for name in SPLITS}
    offset = 0
    for path in sorted(sizes):
        for name, (start, stop) in borders.items():
            first, last = max(start, offset) - offset, min(stop, offset + sizes[path]) - offset
            if first < last:
                splits[name].append(Piece(path, first, last))
        offset += sizes[path]
    return {name: tuple(pieces) for name, pieces in splits.items()}


def _plan_stdlib() -> SourcePlan:
    """Python's standard library without tests and tables, or torch's own sources where it was stripped."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = _python_files(root)
    origin = "Python's standard library"
    if len(files) < FEW_FILES:
        spec = importlib.util.find_spec("torch")
        require(
            spec is not None and spec.origin is not None,
            f"data: stdlib needs Python's .py sources, got {len(files)} files in {root}; give your own "
            "file or folder",
        )
        root = Path(str(spec.origin)).parent  # type: ignore[union-attr]
        files, origin = _python_files(root), "torch's own sources (Python's were not found)"
    plan = _plan_files("stdlib", files, root)
    return SourcePlan("stdlib", f"{origin}, {plan.rule}", plan.files, plan.splits, _english())


def _python_files(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return [
        p for p in root.rglob("*.py") if not LEFT_OUT.intersection(p.relative_to(root).parts) and p.is_file()
    ]


def _english() -> dict[str, list[str]]:
    """Python's reference topics as a slice of English prose, never trained on; nothing where they are
    missing.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return {}
    return {"english": [topics[name] + "\n" for name in sorted(topics)]}


def _readable_size(path: Path) -> int:
    try:
        with path.open("rb"):
            return path.stat().st_size
    except OSError as error:
        require(
            False,
            f"data: {path} must be readable, got {error.strerror or error}; "
            "check its permissions or leave it out",
        )
        raise AssertionError("unreachable") from None


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in relative.parts)


def _common_root(files: list[Path]) -> Path:
    shared = files[0].parent
    while not all(path.is_relative_to(shared) for path in files):
        shared = shared.parent
    return shared
