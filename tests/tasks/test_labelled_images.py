"""Labelled images: files, arrays, IDX and digits."""

import builtins
import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from mapformers.tasks.images import resized
from mapformers.tasks.labelled import read_labelled
from tests.tasks.test_labelled import refusal

Image = pytest.importorskip("PIL.Image", reason="needs the package pillow")


def pictures(
    root: Path, pixels: np.ndarray, suffix: str = "png", classes: str = "ab", count: int = 3
) -> Path:
    """The same picture as every file of every class."""
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            Image.fromarray(pixels).save(root / name / f"{index}.{suffix}")
    return root


def grid(*shape: int) -> np.ndarray:
    return (np.arange(np.prod(shape)) * 7 % 256).astype(np.uint8).reshape(shape)


def idx(path: Path, array: np.ndarray, packed: bool) -> None:
    data = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    if packed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
    else:
        path.write_bytes(data)


def idx_folder(root: Path, packed: bool) -> Path:
    for part, count in (("train", 40), ("t10k", 10)):
        labels = np.arange(count).astype(np.uint8) % 2
        images = np.broadcast_to(labels[:, None, None] * 255, (count, 4, 3)).astype(np.uint8)
        idx(root / f"{part}-images-idx3-ubyte", images, packed)
        idx(root / f"{part}-labels-idx1-ubyte", labels, packed)
    return root


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "pgm", "PNG"])
def test_grey_files(tmp_path: Path, suffix: str) -> None:
    pixels = grid(4, 6)
    made = read_labelled("image", str(pictures(tmp_path, pixels, suffix)))
    assert made.shape == (4, 6)
    assert made.classes == ("a", "b")
    for examples in made.splits.values():
        assert examples.values.dtype == np.float32
        assert np.array_equal(examples.row(0), pixels.reshape(24, 1).astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("suffix", ["png", "ppm", "bmp"])
def test_one_colour_file_makes_all_of_them_colour(tmp_path: Path, suffix: str) -> None:
    pictures(tmp_path, grid(2, 3), "png", "a")
    pictures(tmp_path, grid(2, 3, 3), suffix, "b")
    examples = read_labelled("image", str(tmp_path)).splits["train"]
    grey, colour = examples.row(0), examples.row(1)
    assert grey.shape == colour.shape == (6, 3)
    assert np.array_equal(grey, np.repeat(grid(6, 1), 3, axis=1) / np.float32(255))
    assert np.array_equal(colour, grid(6, 3) / np.float32(255))


def test_jpeg_and_palettes_and_transparency_and_16_bits(tmp_path: Path) -> None:
    flat = np.full((2, 2), 100, np.uint8)
    pictures(tmp_path / "jpeg", flat, "jpeg")
    pictures(tmp_path / "deep", np.full((2, 2), 65535 // 5, np.uint16))
    pictures(tmp_path / "alpha", np.dstack([flat, flat, flat, flat // 2]))
    for name in "ab":
        (tmp_path / "palette" / name).mkdir(parents=True)
        for index in range(3):
            palette = Image.fromarray(flat).convert("P")
            palette.save(tmp_path / "palette" / name / f"{index}.png", transparency=bytes(range(256)))
    wanted = {"jpeg": 100, "deep": 51, "alpha": 100, "palette": 100}
    for folder, value in wanted.items():
        row = read_labelled("image", str(tmp_path / folder)).splits["train"].row(0)
        assert row.shape == (4, 3 if folder == "alpha" else 1)
        assert np.array_equal(np.round(row * 255), np.full_like(row, value))


def test_sizes(tmp_path: Path) -> None:
    pictures(tmp_path, np.full((4, 6), 51, np.uint8), classes="a")
    pictures(tmp_path, np.full((9, 5), 51, np.uint8), classes="b")
    said = refusal("image", tmp_path)
    assert f"{tmp_path}/b/0.png must be 4 x 6 (height x width) as {tmp_path}/a/0.png, got 9 x 5" in said
    assert said.endswith("; write --set data.size=32")
    made = read_labelled("image", str(tmp_path), 8)
    assert made.shape == (8, 8)
    assert np.allclose(made.splits["train"].values, 0.2)
    assert made.splits["train"].row(0).shape == (64, 1)


def test_resizing_averages_and_stays_in_range() -> None:
    board = (np.indices((8, 8)).sum(0) % 2).astype(np.float32)[..., None]
    small = resized(board, 2)
    assert small.shape == (2, 2, 1)
    assert small.dtype == np.float32
    assert 0.4 < small.min() <= small.max() < 0.6
    assert resized(board, 8) is board
    sides = resized(np.dstack([board, board * 0, board * 0 + 1]), 3)
    assert np.array_equal(sides[..., 1], np.zeros((3, 3)))
    assert np.allclose(sides[..., 2], 1)
    assert sides.max() <= 1


def test_split_folders(tmp_path: Path) -> None:
    for split, value in (("train", 0), ("valid", 51), ("test", 255)):
        pictures(tmp_path / split, np.full((2, 2), value, np.uint8))
    made = read_labelled("image", str(tmp_path))
    assert made.rule == "the published splits"
    values = [float(examples.values.mean()) for examples in made.splits.values()]
    assert np.allclose(values, [0, 0.2, 1])


def test_npz_of_images(tmp_path: Path) -> None:
    path, y = tmp_path / "a.npz", np.arange(8) % 2
    np.savez(path, x=np.full((8, 4, 5, 3), -2.5), y=y)
    made = read_labelled("image", str(path))
    assert made.shape == (4, 5)
    assert made.splits["train"].row(0).shape == (20, 3)
    assert set(made.splits["train"].values.ravel()) == {-2.5}
    assert read_labelled("image", str(path), 2).splits["test"].row(0).shape == (4, 3)
    wrong = {
        "x must be [n, height, width]": np.ones((8, 4)),
        "got the shape (8, 4, 5, 2)": np.ones((8, 4, 5, 2)),
        "x must be uint8 or float, got int64": np.ones((8, 4, 5), np.int64),
        "x[3] must be finite, got inf": np.where(np.arange(8) == 3, np.inf, 0.0)[:, None, None],
    }
    for message, x in wrong.items():
        np.savez(path, x=x, y=y)
        assert message in refusal("image", path)
    np.savez(path, x_train=np.ones((8, 4, 4)), y_train=y, x_test=np.ones((8, 5, 5, 3)), y_test=y)
    assert f"{path} x_test must be 4 x 4 (height x width) as {path} x_train, got 5 x 5" in refusal(
        "image", path
    )
    assert read_labelled("image", str(path), 3).splits["train"].row(0).shape == (9, 3)


@pytest.mark.parametrize("packed", [False, True])
def test_idx(tmp_path: Path, packed: bool) -> None:
    made = read_labelled("image", str(idx_folder(tmp_path, packed)))
    assert made.shape == (4, 3)
    assert made.classes == ("0", "1")
    assert made.rule.startswith(
        "the published splits; valid is 10 % of train by the SHA-256 of each row index"
    )
    assert len(made.splits["test"]) == 10
    assert len(made.splits["train"]) + len(made.splits["valid"]) == 40
    for examples in made.splits.values():
        for index, label in enumerate(examples.labels):
            assert np.array_equal(examples.row(index), np.full((12, 1), label, np.float32))


def test_damaged_idx(tmp_path: Path) -> None:
    labels = idx_folder(tmp_path, packed=True) / "t10k-labels-idx1-ubyte.gz"
    whole = labels.read_bytes()
    for data in (whole[:-9], b"hello", whole[:12] + b"???" + whole[15:]):
        labels.write_bytes(data)
        assert f"{labels} must be a readable gzip file" in refusal("image", tmp_path)
    plain = gzip.decompress(whole)
    cases = {
        "must start with an IDX header of bytes with 1 axes at byte 0, got 01000801": b"\x01" + plain[1:],
        "got no bytes": b"",
        "must hold 18 bytes": plain[:-1],
        "got 19 bytes": plain + b"x",
        "must label 10 images, got 9 labels": plain[:4] + struct.pack(">I", 9) + plain[8:-1],
    }
    for message, data in cases.items():
        labels.write_bytes(gzip.compress(data))
        said = refusal("image", tmp_path)
        assert message in said
        assert str(labels) in said
    labels.unlink()
    assert "t10k-labels-idx1-ubyte must exist, plain or as .gz" in refusal("image", tmp_path)


def test_damaged_files(tmp_path: Path) -> None:
    pictures(tmp_path, grid(30, 30))
    bad = tmp_path / "b" / "1.png"
    whole = bad.read_bytes()
    for data in (b"", b"hello", whole[: len(whole) // 2], whole[:30] + b"???" + whole[33:], whole[:8]):
        bad.write_bytes(data)
        assert f"{bad} must be a readable image" in refusal("image", tmp_path)
    bad.unlink()
    other = tmp_path / "b" / "x.webp"
    other.write_bytes(b"x")
    said = refusal("image", tmp_path)
    assert f"{other} must end in one of .png .jpg .jpeg .bmp .gif .pgm .ppm, got '.webp'" in said


def test_a_film_is_no_picture(tmp_path: Path) -> None:
    pictures(tmp_path, grid(4, 4), "gif")
    film = [Image.fromarray(grid(4, 4) // part) for part in (1, 2, 3)]
    film[0].save(tmp_path / "a" / "film.gif", save_all=True, append_images=film[1:])
    assert "film.gif must hold one picture, got 3 frames" in refusal("image", tmp_path)


@pytest.mark.slow
def test_digits() -> None:
    pytest.importorskip("sklearn", reason="needs the package scikit-learn")
    made = read_labelled("image", "digits")
    assert made.shape == (8, 8)
    assert made.classes == tuple("0123456789")
    assert sum(map(len, made.splits.values())) == 1797
    assert made.splits["train"].row(0).shape == (64, 1)
    assert float(made.splits["train"].values.max()) == 1.0
    assert read_labelled("image", "digits", 4).shape == (4, 4)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name.split(".")[0] in ("sklearn", "PIL"):
            raise ImportError(name)
        return real(name, *rest)

    pictures(tmp_path, grid(4, 4))
    monkeypatch.setattr(builtins, "__import__", without)
    assert "digits needs the package scikit-learn, got none; pip install" in refusal("image", "digits")
    assert "a/0.png needs the package pillow, got none; pip install pillow" in refusal("image", tmp_path)
