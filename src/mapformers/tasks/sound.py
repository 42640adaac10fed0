"""Labelled audio: class folders of .wav files, or .npz. A row is float32 [samples, 1] in [-1, 1]."""

import contextlib
import wave
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mapformers.tasks.hub import open_hub, opened
from mapformers.tasks.labelled import (
    Block,
    Labelled,
    as_floats,
    class_files,
    from_blocks,
    from_pieces,
    read_npz,
    refuse,
    refuse_form,
    words_of,
)
from mapformers.tasks.labelled_hub import from_hub, hub_items


def read_sound(path: Path) -> Labelled:
    """The sounds of an .npz file or of class folders.

    Raises MapformersError naming the file that is damaged or has another sample rate than the first.
    """
    if path.is_dir():
        return _from_files(path)
    if path.suffix.lower() != ".npz":
        refuse_form("audio", path)
    blocks = read_npz(path)
    return from_blocks(path, blocks, [list(_samples(block)) for block in blocks])


def read_hub_sound(source: str) -> Labelled:
    """The columns audio and label of hf:NAME[,CONFIG], through `datasets`, which downloads.

    Raises MapformersError naming the row that is no PCM .wav, damaged, or of another sample rate.
    """
    data = open_hub(source)
    column, label = data.column("audio"), data.column("label")
    items = list(hub_items(data.undecoded(column), column, label))
    rows = _of_one_rate((item.where, opened(item.where, item.value)) for item in items)
    return from_hub(data, [item.piece(row) for item, row in zip(items, rows, strict=True)])


def read_wav(path: Path) -> tuple[np.ndarray, int]:
    """float32 [samples] of one .wav file, its channels averaged, and its sample rate.

    Raises MapformersError when it is damaged, cut off, empty or no PCM of 8, 16, 24 or 32 bits.
    """
    return _read_wav(str(path), path)


def _read_wav(where: str, source: Path | BinaryIO) -> tuple[np.ndarray, int]:
    try:
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
            file = stack.enter_context(wave.open(raw))
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            frames = file.getnframes()
            data = file.readframes(frames)
    except Exception as error:  # besides its own, wave raises EOFError, struct.error and others
        refuse(where, "must be a readable PCM .wav", words_of(error), "replace it or leave it out")
    if width not in (1, 2, 3, 4):
        refuse(where, "must have 8, 16, 24 or 32 bits", f"{8 * width}", "convert it")
    wanted = frames * channels * width
    if not data or len(data) != wanted:
        got = f"{len(data)} bytes where its header says {wanted}"
        refuse(where, "must be whole and hold samples", got, "replace it or leave it out")
    return _decoded(data, width).reshape(-1, channels).mean(axis=1, dtype=np.float32), rate


def _decoded(data: bytes, width: int) -> np.ndarray:
    """float32 [frames * channels] in [-1, 1] of little-endian PCM."""
    if width == 1:  # the only width without a sign
        whole = np.frombuffer(data, np.uint8).astype(np.int32) - 128
    elif width == 3:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        whole = wide.reshape(-1).view("<i4") >> 8  # the shift brings the sign down
    else:
        whole = np.frombuffer(data, f"<i{width}")
    return (whole / float(1 << (8 * width - 1))).astype(np.float32)


def _from_files(folder: Path) -> Labelled:
    files = class_files("audio", folder, (".wav",))
    rows = _of_one_rate((str(file.path), file.path) for file in files)
    return from_pieces(folder, [file.piece(row) for file, row in zip(files, rows, strict=True)])


def _of_one_rate(files: Iterable[tuple[str, Path | BinaryIO]]) -> list[np.ndarray]:
    """Rows [samples, 1] of named files that have the sample rate of the first."""
    rows: list[np.ndarray] = []
    first = ("", 0)
    for where, source in files:
        samples, rate = _read_wav(where, source)
        first = first if rows else (where, rate)
        if rate != first[1]:
            rule = f"must have the sample rate {first[1]} of {first[0]}"
            refuse(where, rule, str(rate), "resample it")
        rows.append(samples[:, None])  # [samples, 1]
    return rows


def _samples(block: Block) -> np.ndarray:
    """[n, S, 1] float32 of x [n, S]."""
    x, where = block.x, block.where
    if x.ndim != 2:
        refuse(where, "must be [n, samples]", f"the shape {x.shape}", "average the channels")
    if x.dtype == np.int16:
        return (x / 32768).astype(np.float32)[..., None]
    if x.dtype.kind != "f":
        refuse(where, "must be int16 or float", str(x.dtype), "convert the samples")
    return as_floats(x, where)[..., None]
