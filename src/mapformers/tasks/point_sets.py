"""Labelled sets of points: class folders of .npy, .xyz, .txt or .csv files, or .npz.

A row is float32 [P, 3]: x, y, z of each point.
"""

from pathlib import Path

import numpy as np

from mapformers.tasks.labelled import (
    Block,
    Labelled,
    as_floats,
    class_files,
    from_blocks,
    from_pieces,
    read_bytes,
    read_npz,
    refuse,
    refuse_form,
    words_of,
)

SUFFIXES = (".npy", ".xyz", ".txt", ".csv")


def read_points(path: Path) -> Labelled:
    """The point sets of an .npz file or of class folders.

    Raises MapformersError naming the file, and its line where there is one.
    """
    if path.is_dir():
        files = class_files("points", path, SUFFIXES)
        return from_pieces(path, [file.piece(read_point_file(file.path)) for file in files])
    if path.suffix.lower() != ".npz":
        refuse_form("points", path)
    blocks = read_npz(path)
    return from_blocks(path, blocks, [list(_points(block)) for block in blocks])


def read_point_file(path: Path) -> np.ndarray:
    """float32 [P, 3] of one file.

    Raises MapformersError when it is damaged, empty, of another shape or not finite.
    """
    return _read_npy(path) if path.suffix.lower() == ".npy" else _read_lines(path)


def _read_npy(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # the parser of headers raises what it meets
        refuse(str(path), "must be an array without objects", words_of(error), "write it with numpy.save")
    if array.ndim != 2 or array.shape[-1] != 3 or not len(array):
        refuse(str(path), "must be [points, 3]", f"the shape {array.shape}", "save x, y, z of each point")
    if array.dtype.kind not in "fiu":
        refuse(str(path), "must be numbers", str(array.dtype), "save x, y, z as floats")
    return as_floats(array, str(path))


def _read_lines(path: Path) -> np.ndarray:
    """Three numbers in each line, with blanks or commas between; # starts a comment, x y z is a heading."""
    points: list[tuple[float, float, float]] = []
    lines = []
    for number, line in enumerate(read_bytes(path).decode("utf-8", "replace").splitlines(), 1):
        words = line.lstrip("\ufeff").partition("#")[0].replace(",", " ").split()
        if not words or (not points and [word.lower() for word in words] == ["x", "y", "z"]):
            continue
        try:
            x, y, z = map(float, words)
        except ValueError:
            refuse(f"{path} line {number}", "must be three numbers", repr(line[:60]), "write x y z")
        points.append((x, y, z))
        lines.append(number)
    if not points:
        refuse(str(path), "must hold points", "none", "write x y z of one point in each line")
    with np.errstate(over="ignore"):
        values = np.array(points).astype(np.float32)
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        place = int(np.argmax(bad))
        refuse(f"{path} line {lines[place]}", "must be finite", str(points[place]), "mend it or leave it out")
    return values


def _points(block: Block) -> np.ndarray:
    """[n, P, 3] float32."""
    x, where = block.x, block.where
    if x.ndim != 3 or x.shape[-1] != 3:
        refuse(where, "must be [n, points, 3]", f"the shape {x.shape}", "save x, y, z of each point")
    if x.dtype.kind not in "fiu":
        refuse(where, "must be numbers", str(x.dtype), "save x, y, z as floats")
    return as_floats(x, where)
