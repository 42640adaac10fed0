"""Labelled images: class folders, .npz, IDX files as MNIST has them, and the digits of scikit-learn.

A row is float32 [H * W, C], line by line from the top, with C = 1 for grey and 3 for colour.
"""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mapformers.tasks.hub import open_hub, opened
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
from mapformers.tasks.labelled_hub import from_hub, hub_items

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM")  # nothing else is tried, whatever a file is called
IDX_PARTS = {"train": "train", "test": "t10k"}
UBYTE = 8  # the code of unsigned bytes in an IDX header


def read_images(path: Path, size: int | None = None) -> Labelled:
    """The images of an .npz file, of class folders or of a folder of IDX files, resized when `size` is given.

    Raises MapformersError naming the file that is damaged or differs from the others.
    """
    if path.is_dir():
        if any(_idx_file(path, name) for name in _idx_names()):
            return _from_arrays(path, _read_idx(path), size)
        return _from_files(path, size)
    if path.suffix.lower() != ".npz":
        refuse_form("image", path)
    return _from_arrays(path, read_npz(path), size)


def read_hub_images(source: str, size: int | None = None) -> Labelled:
    """The columns image (or img) and label of hf:NAME[,CONFIG], through `datasets`, which downloads.

    Raises MapformersError naming the row whose image is damaged or differs from the others.
    """
    data = open_hub(source)
    column, label = data.column("image", "img"), data.column("label")
    items = list(hub_items(data.undecoded(column), column, label))
    images = [_read_image(item.where, opened(item.where, item.value)) for item in items]
    rows, shape = _alike([item.where for item in items], images, size)
    return from_hub(data, [item.piece(row) for item, row in zip(items, rows, strict=True)], shape)


def read_digits(size: int | None = None) -> Labelled:
    """The 1797 digits of scikit-learn: rows [64, 1], or [size * size, 1].

    Raises MapformersError when scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        refuse("digits", "needs the package scikit-learn", "none", "pip install scikit-learn")
    loaded = load_digits()
    images = (loaded.images / 16).astype(np.float32)  # the file counts from 0 to 16
    block = Block(images, loaded.target.astype(np.int64), "digits x")
    return _from_arrays("digits", [block], size)


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """[H, W, C] float32 as [size, size, C], with Pillow's bilinear filter; values stay in their range.

    Raises MapformersError when Pillow is missing.
    """
    if image.shape[:2] == (size, size):
        return image
    pillow = _pillow("data.size")
    channels = [
        pillow.fromarray(np.ascontiguousarray(image[..., channel])).resize(
            (size, size), pillow.Resampling.BILINEAR
        )
        for channel in range(image.shape[-1])
    ]
    return np.stack([np.asarray(one) for one in channels], axis=-1).clip(image.min(), image.max())


def _from_files(folder: Path, size: int | None) -> Labelled:
    files = class_files("image", folder, SUFFIXES)
    images = [_read_image(str(file.path), file.path) for file in files]
    rows, shape = _alike([str(file.path) for file in files], images, size)
    return from_pieces(folder, [file.piece(row) for file, row in zip(files, rows, strict=True)], shape=shape)


def _alike(
    names: Sequence[str], images: Sequence[np.ndarray], size: int | None
) -> tuple[list[np.ndarray], tuple[int, int]]:
    """Rows [H * W, C] of one size and depth, and (H, W). One picture in colour makes all of them coloured."""
    images = list(images) if size is None else [resized(image, size) for image in images]
    for name, image in zip(names, images, strict=True):
        _check_shape(name, image.shape, names[0], images[0].shape)
    if any(image.shape[-1] == 3 for image in images):
        images = [np.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x for x in images]
    height, width, _ = images[0].shape
    return [_row(image) for image in images], (height, width)


def _from_arrays(source: object, blocks: Sequence[Block], size: int | None) -> Labelled:
    stacks = [_stack(block) for block in blocks]
    channels = max(stack.shape[-1] for stack in stacks)
    rows = []
    for place, (block, stack) in enumerate(zip(blocks, stacks, strict=True)):
        if size is not None and stack.shape[1:3] != (size, size):
            stack = np.stack([resized(image, size) for image in stack])
        if stack.shape[-1] < channels:
            stack = np.repeat(stack, channels, axis=-1)
        stacks[place] = stack
        _check_shape(block.where, stack.shape[1:], blocks[0].where, stacks[0].shape[1:])
        rows.append([_row(image) for image in stack])
    height, width = stacks[0].shape[1:3]
    return from_blocks(source, blocks, rows, (height, width))


def _row(image: np.ndarray) -> np.ndarray:
    return image.reshape(-1, image.shape[-1])  # [H * W, C]


def _stack(block: Block) -> np.ndarray:
    """[n, H, W, C] float32 of x [n, H, W] or [n, H, W, C]."""
    x, where = block.x, block.where
    if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[-1] not in (1, 3)):
        rule = "must be [n, height, width] or [n, height, width, 1 or 3]"
        refuse(where, rule, f"the shape {x.shape}", "save images in this order of axes")
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        refuse(where, "must be uint8 or float", str(x.dtype), "convert the pixels")
    full = x if x.ndim == 4 else x[..., None]
    if x.dtype == np.uint8:
        return full.astype(np.float32) / np.float32(255)
    return as_floats(full, where)


def _check_shape(where: str, shape: tuple[int, ...], first: str, wanted: tuple[int, ...]) -> None:
    if shape[:2] != wanted[:2]:
        rule = f"must be {wanted[0]} x {wanted[1]} (height x width) as {first}"
        refuse(where, rule, f"{shape[0]} x {shape[1]}", "write --set data.size=32")


def _pillow(what: str) -> Any:
    try:
        from PIL import Image
    except ImportError:
        refuse(what, "needs the package pillow", "none", "pip install pillow")
    return Image


def _read_image(where: str, source: Path | BinaryIO) -> np.ndarray:
    """[H, W, C] float32 in [0, 1]. Transparency is dropped; 16-bit grey keeps its depth."""
    pillow = _pillow(where)
    try:
        with pillow.open(source, formats=FORMATS) as file:
            frames = getattr(file, "n_frames", 1)
            file.load()
            pixels = _pixels(file)
    except Exception as error:  # each decoder has errors of its own
        refuse(where, "must be a readable image", words_of(error), "replace it or leave it out")
    if frames > 1:
        refuse(where, "must hold one picture", f"{frames} frames", "save one frame of it")
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _pixels(file: Any) -> np.ndarray:
    """[H, W] of a grey image or [H, W, 3] of one in colour."""
    if file.mode.startswith("I"):  # 16 bits; converting them to 8 would cut them off
        return np.asarray(file).astype(np.float32) / np.float32(65535)
    if file.mode in ("1", "L", "LA"):
        return np.asarray(file.convert("L")).astype(np.float32) / np.float32(255)
    colours = np.asarray(file.convert("RGBA").convert("RGB")).astype(np.float32) / np.float32(255)
    is_grey = file.mode == "P" and bool((colours == colours[..., :1]).all())  # a palette of greys
    return colours[..., 0] if is_grey else colours


def _idx_names() -> list[str]:
    names = [(f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte") for part in IDX_PARTS.values()]
    return [name for pair in names for name in pair]


def _idx_file(folder: Path, name: str) -> Path | None:
    """The file plain or gzipped, None where there is neither."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def _read_idx(folder: Path) -> list[Block]:
    blocks = []
    for split, part in IDX_PARTS.items():
        paths = []
        for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
            path = _idx_file(folder, name)
            if path is None:
                refuse(f"{folder / name}", "must exist, plain or as .gz", "none", "complete the folder")
            paths.append(path)
        images, labels = _idx_array(paths[0], 3), _idx_array(paths[1], 1)
        if len(images) != len(labels):
            got = f"{len(labels)} labels"
            refuse(str(paths[1]), f"must label {len(images)} images", got, "fetch both files again")
        blocks.append(Block(images, labels.astype(np.int64), f"{paths[0]} images", split))
    return blocks


def _idx_array(path: Path, axes: int) -> np.ndarray:
    """Unsigned bytes with `axes` axes: two zero bytes, type, axes, then each size in four bytes."""
    data = read_bytes(path)
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            refuse(str(path), "must be a readable gzip file", words_of(error), "fetch it again")
    start = 4 + 4 * axes
    if data[:4] != bytes((0, 0, UBYTE, axes)) or len(data) < start:
        rule = f"must start with an IDX header of bytes with {axes} axes at byte 0"
        refuse(str(path), rule, data[:4].hex() or "no bytes", "fetch it again")
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", axes, offset=4))
    wanted = start
    wanted += int(np.prod(shape, dtype=object))  # Python's integers do not overflow
    if len(data) != wanted or 0 in shape:
        rule = f"must hold {wanted} bytes, and one image or more, for the shape {shape} at byte 4"
        refuse(str(path), rule, f"{len(data)} bytes", "fetch it again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
