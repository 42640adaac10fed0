"""Labelled examples from a SOURCE: one row and one class each, in the splits train, valid and test.

`read_labelled` finds the form of the source and hands it to the file of its kind (images, sound, texts,
point_sets). What those share stands here: class folders, .npz files, and how splits are made.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from mapformers.core.errors import MapformersError, require_known
from mapformers.tasks.examples import Examples
from mapformers.tasks.hub import SPLIT_NAMES, SPLITS, is_hub
from mapformers.tasks.splits import HELD_OUT, cut

KINDS = ("text", "image", "audio", "points")
FORMS = {
    "text": "give an .npz, .csv or .jsonl file, a folder with one folder per class or with train.csv, "
    "or hf:NAME",
    "image": "give an .npz file, a folder with one folder per class, a folder of IDX files, digits, or "
    "hf:NAME",
    "audio": "give an .npz file, a folder with one folder of .wav files per class, or hf:NAME",
    "points": "give an .npz file, or a folder with one folder of point files per class",
}
Shape = tuple[int, ...] | None  # (height, width) of images
MOST_CLASSES = 1 << 16  # a larger label is a number that names no class


@dataclass(frozen=True)
class Labelled:
    """Labelled examples.

    splits   train, valid and test; a label is a place in `classes`
    classes  the names of the classes
    rule     how the splits were made, in words
    shape    (height, width) of images, None for other kinds
    """

    splits: dict[str, Examples]
    classes: tuple[str, ...]
    rule: str
    shape: Shape


@dataclass(frozen=True)
class Piece:
    """One example before it is in a split.

    row    [length, ...]
    label  the name of its class
    key    what is hashed to choose its split
    split  the published split, None where there is none
    """

    row: np.ndarray
    label: str
    key: str
    split: str | None = None


@dataclass(frozen=True)
class ClassFile:
    """A file that holds one example, in a folder that is named after its class."""

    path: Path
    label: str
    key: str
    split: str | None

    def piece(self, row: np.ndarray) -> Piece:
        """The example, given the row [length, ...] read from the file."""
        return Piece(row, self.label, self.key, self.split)


@dataclass(frozen=True)
class Block:
    """Examples that come as arrays: x [n, ...], labels [n] int64. `where` names x in errors."""

    x: np.ndarray
    labels: np.ndarray
    where: str
    split: str | None = None


def read_labelled(kind: str, source: str, size: int | None = None) -> Labelled:
    """The examples of a SOURCE.

    A row is uint8 [n] for text, float32 [H * W, C] for image, float32 [samples, 1] for audio and float32
    [P, 3] for points. With `size`, images become size x size.
    Raises MapformersError naming the file, and the line or byte where there is one.
    """
    from mapformers.tasks.images import read_digits, read_hub_images, read_images
    from mapformers.tasks.point_sets import read_points
    from mapformers.tasks.sound import read_hub_sound, read_sound
    from mapformers.tasks.texts import read_hub_texts, read_texts

    require_known("data", "kind", kind, KINDS)
    if not isinstance(source, str) or not source:
        refuse("SOURCE", "must be a name or a path", repr(source), FORMS[kind])
    _check_size(kind, size)
    if kind == "image" and source == "digits":
        return read_digits(size)
    if is_hub(source):
        if kind == "image":
            return read_hub_images(source, size)
        if kind == "points":
            refuse("hf:NAME", "is read for text, image and audio only", f"{source} for {kind}", FORMS[kind])
        return {"text": read_hub_texts, "audio": read_hub_sound}[kind](source)
    path = _existing(kind, source)
    if kind == "image":
        return read_images(path, size)
    return {"text": read_texts, "audio": read_sound, "points": read_points}[kind](path)


def refuse(what: str, rule: str, got: str, remedy: str) -> NoReturn:
    """Raise MapformersError `data: <what> <rule>, got <got>; <remedy>`, always on one line."""
    message = f"data: {what} {rule}, got {got}; {remedy}"
    raise MapformersError(" ".join(message.splitlines())) from None


def words_of(error: BaseException) -> str:
    """What an exception of another library says, short and on one line."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:160]}" if text else type(error).__name__


def refuse_form(kind: str, path: Path) -> NoReturn:
    """Raise MapformersError: the source exists and is of no form that this kind reads."""
    got = "a folder" if path.is_dir() else f"a file {path.suffix or 'without an ending'}"
    refuse(str(path), f"must be a known form of {kind}", got, FORMS[kind])


def class_name(where: str, label: Any) -> str:
    """A label as text: a name, or an integer. Raises MapformersError for others."""
    is_number = isinstance(label, int) and not isinstance(label, bool)
    if not is_number and not (isinstance(label, str) and label.strip()):
        refuse(where, "must have a label, a name or an integer", repr(label)[:60], "label it")
    return str(label).strip()


def read_bytes(path: Path) -> bytes:
    """All bytes of a file. Raises MapformersError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        refuse(str(path), "must be readable", words_of(error), "check its permissions or leave it out")


def class_files(kind: str, folder: Path, suffixes: tuple[str, ...] | None) -> list[ClassFile]:
    """The files of `folder`/CLASS or `folder`/SPLIT/CLASS in the order of their names; hidden ones are left
    out.

    Raises MapformersError for an empty class, a file with none of the suffixes (None allows any), and split
    folders mixed with others.
    """
    names = [child.name for child in _folders(folder)]
    splits = [name for name in names if name in SPLIT_NAMES]
    if "train" not in splits or (len(splits) < len(names) and len(splits) == 1):
        return _of_classes(kind, folder, folder, suffixes, None)
    if len(splits) < len(names):
        others = ", ".join(sorted(set(names) - set(splits)))
        refuse(str(folder), "must hold splits only or classes only", f"train and {others}", "move the others")
    twice = [name for name, count in Counter(SPLIT_NAMES[name] for name in splits).items() if count > 1]
    if twice:
        refuse(str(folder), f"must hold {twice[0]} once", ", ".join(splits), "keep one of these folders")
    found: list[ClassFile] = []
    for name in splits:
        found += _of_classes(kind, folder, folder / name, suffixes, SPLIT_NAMES[name])
    return found


def read_npz(path: Path) -> list[Block]:
    """x [n, ...] and y [n] of an .npz file, or x_train, y_train, x_test, y_test and maybe x_valid, y_valid.

    Raises MapformersError for a damaged file, missing or unknown names, arrays of objects, labels that are
    not integers from 0, and different lengths.
    """
    arrays = _arrays(path)
    splits = SPLITS if "x_valid" in arrays or "y_valid" in arrays else ("train", "test")
    ends = [""] if "x" in arrays else [f"_{split}" for split in splits]
    wanted = {f"{letter}{end}" for letter in "xy" for end in ends}
    if wanted != set(arrays):
        got, remedy = ", ".join(sorted(arrays)), "save x and y, or x_train, y_train, x_test, y_test"
        refuse(str(path), f"must hold {', '.join(sorted(wanted))}", got or "no arrays", remedy)
    blocks = []
    for end in ends:
        x, y = arrays[f"x{end}"], arrays[f"y{end}"]
        labels = _labels(y, f"{path} y{end}")
        if x.ndim == 0 or len(x) != len(labels):
            got = f"{len(x) if x.ndim else 'no'} rows and {len(labels)} labels"
            refuse(f"{path} x{end} and y{end}", "must be of one length", got, "save one label for each row")
        if not x.size:
            refuse(f"{path} x{end}", "must hold examples", f"the shape {x.shape}", "save rows with values")
        blocks.append(Block(x, labels, f"{path} x{end}", end.removeprefix("_") or None))
    return blocks


def as_floats(x: np.ndarray, where: str) -> np.ndarray:
    """x [n, ...] as float32. Raises MapformersError naming the first row with NaN or an infinite value."""
    with np.errstate(over="ignore"):  # what is too large becomes infinite and is refused below
        values = np.asarray(x, dtype=np.float32)
    bad = ~np.isfinite(values)
    if bad.any():
        index = int(np.argmax(bad.reshape(len(values), -1).any(axis=1)))
        value = values[index][bad[index]].flat[0]
        refuse(f"{where}[{index}]", "must be finite", str(value), "mend the row or leave it out")
    return values


def from_blocks(
    source: object, blocks: Sequence[Block], rows: Sequence[Sequence[np.ndarray]], shape: Shape = None
) -> Labelled:
    """Examples from blocks and, for each of them, its rows [length, ...]. Classes are named 0, 1, ..."""
    pieces = [
        Piece(row, str(label), str(index), block.split)
        for block, some in zip(blocks, rows, strict=True)
        for index, (row, label) in enumerate(zip(some, block.labels.tolist(), strict=True))
    ]
    count = 1 + max(int(block.labels.max()) for block in blocks)
    return from_pieces(source, pieces, "row index", shape, tuple(map(str, range(count))))


def from_pieces(
    source: object,
    pieces: Sequence[Piece],
    keys: str = "relative path",
    shape: Shape = None,
    classes: tuple[str, ...] | None = None,
) -> Labelled:
    """Examples from pieces, in their published splits or in splits made by hash.

    `keys` says in words what the keys are. `classes` are the names found, in order, unless given.
    Raises MapformersError for fewer than two classes, for a class that train or test lacks, and for too few
    examples.
    """
    labels = [piece.label for piece in pieces]
    counts = Counter(labels)
    if len(counts) < 2:
        got = f"{len(counts)} ({', '.join(counts) or 'no examples'})"
        refuse(str(source), "must have 2 classes or more", got, "add examples of another class")
    chosen, rule = _choose(source, pieces, keys)
    _check_splits(source, labels, chosen)
    names = classes or tuple(sorted(counts, key=_class_order))
    number = {name: place for place, name in enumerate(names)}
    splits = {}
    for split in SPLITS:
        some = [piece for piece, own in zip(pieces, chosen, strict=True) if own == split]
        splits[split] = Examples.of([piece.row for piece in some], [number[piece.label] for piece in some])
    return Labelled(splits, names, rule, shape)


def _choose(source: object, pieces: Sequence[Piece], keys: str) -> tuple[list[str], str]:
    """The split of each piece, and the rule in words. Published splits stay; missing ones come from train."""
    given = {piece.split for piece in pieces}
    if given == set(SPLITS):
        return [str(piece.split) for piece in pieces], "the published splits"
    if None not in given and "train" not in given:
        names = ", ".join(sorted(map(str, given)))
        refuse(str(source), "must hold the split train", names, "add it, or give examples without splits")
    missing = [split for split in ("valid", "test") if split not in given]
    shares = {"train": 1 - HELD_OUT * len(missing), **dict.fromkeys(missing, HELD_OUT)}
    places = [place for place, piece in enumerate(pieces) if piece.split in (None, "train")]
    own, by_class = cut([pieces[p].label for p in places], [pieces[p].key for p in places], shares)
    chosen = [str(piece.split) for piece in pieces]
    for place, split in zip(places, own, strict=True):
        chosen[place] = split
    way = f"by the SHA-256 of each {keys}" + (", class by class in the order of the hashes" * by_class)
    part = f"the published splits; {missing[0]} is 10 % of train"
    return chosen, f"{'80/10/10' if len(missing) == 2 else part} {way}"


def _check_splits(source: object, labels: Sequence[str], chosen: Sequence[str]) -> None:
    have = {split: set[str]() for split in SPLITS}
    for label, split in zip(labels, chosen, strict=True):
        have[split].add(label)
    for split, other in (("valid", "train"), ("test", "train"), ("train", "test")):
        for label in sorted(have[split] - have[other])[:1]:
            remedy = f"add examples of it to {other} or leave the class out"
            refuse(f"{source} class {label!r} of {split}", f"must be in {other}", "no example there", remedy)
    if not have["valid"]:
        refuse(
            str(source), "must have 3 examples or more of a class", f"{len(labels)} in all", "add examples"
        )


def _class_order(name: str) -> tuple[int, str]:
    """Numbers by value, as 0 to 10 should not become 0, 1, 10; then names by letter."""
    return (int(name), "") if name.isascii() and name.isdigit() and len(name) < 10 else (10**9, name)


def _check_size(kind: str, size: int | None) -> None:
    if size is None:
        return
    if kind != "image":
        refuse("data.size", "is for images only", f"{size!r} for {kind}", "leave data.size out")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        refuse("data.size", "must be an integer of 1 or more", repr(size), "write --set data.size=32")


def _existing(kind: str, source: str) -> Path:
    try:
        there = (path := Path(source).expanduser()).exists()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a home that is unknown
        refuse("SOURCE", "must be a path that can be looked up", words_of(error), FORMS[kind])
    if not there:
        refuse("SOURCE", "must exist", f"{source}, which does not", FORMS[kind])
    return path


def _folders(folder: Path) -> list[Path]:
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        refuse(str(folder), "must be readable", words_of(error), "check its permissions")
    return [child for child in children if child.is_dir() and child.name[0] != "."]


def _of_classes(
    kind: str, root: Path, folder: Path, suffixes: tuple[str, ...] | None, split: str | None
) -> list[ClassFile]:
    classes = _folders(folder)
    if not classes:
        refuse(str(folder), "must hold one folder per class", "no folders", FORMS[kind])
    found = []
    for home in classes:
        below = [(path, path.relative_to(home).parts) for path in sorted(home.rglob("*"))]
        files = [path for path, parts in below if not any(p[0] == "." for p in parts) and path.is_file()]
        if not files:
            refuse(str(home), "must hold files of its class", "none", "add examples or remove the folder")
        for path in files:
            if suffixes is not None and path.suffix.lower() not in suffixes:
                allowed, got = " ".join(suffixes), repr(path.suffix)
                refuse(str(path), f"must end in one of {allowed}", got, "convert it or remove it")
            found.append(ClassFile(path, home.name, path.relative_to(root).as_posix(), split))
    return found


def _arrays(path: Path) -> dict[str, np.ndarray]:
    name = ""
    try:
        with path.open("rb") as file:  # numpy leaves a damaged file open
            archive, arrays = np.load(file, allow_pickle=False), {}
            for name in getattr(archive, "files", ()):
                arrays[name] = np.asarray(archive[name])
    except Exception as error:  # zip, zlib and the parser of headers each have errors of their own
        what = f"{path} {name}".rstrip()
        refuse(what, "must be arrays without objects", words_of(error), "write it again with numpy.savez")
    return arrays


def _labels(y: np.ndarray, where: str) -> np.ndarray:
    if y.dtype.kind not in "iu" or y.ndim != 1:
        remedy = "number the classes from 0"
        refuse(where, "must be integers of the shape [n]", f"{y.dtype} of the shape {y.shape}", remedy)
    bad = (y < 0) | (y >= MOST_CLASSES)
    if bad.any():
        index = int(np.argmax(bad))
        refuse(f"{where}[{index}]", f"must be 0 to {MOST_CLASSES - 1}", str(y[index]), "number from 0")
    return y.astype(np.int64)
