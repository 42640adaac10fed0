"""Labelled audio and labelled sets of points."""

import struct
import wave
from pathlib import Path

import numpy as np
import pytest

from mapformers.tasks.labelled import read_labelled
from mapformers.tasks.point_sets import read_point_file
from mapformers.tasks.sound import read_wav
from tests.tasks.test_labelled import refusal


def wav(path: Path, data: bytes, width: int = 2, channels: int = 1, rate: int = 8000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)
    return path


def sounds(root: Path) -> Path:
    for name in "ab":
        for index in range(3):
            wav(root / name / f"{index}.wav", struct.pack("<h", index) * (5 + index))
    return root


def point_files(root: Path, suffix: str, text: str = "0 1 2\n3 4 5\n") -> Path:
    for name in "ab":
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(3):
            path = root / name / f"{index}{suffix}"
            if suffix == ".npy":
                np.save(path, np.arange(6.0).reshape(2, 3))
            else:
                path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("width", "data"),
    [
        (1, bytes([0, 64, 128, 192])),
        (2, struct.pack("<4h", -(2**15), -(2**14), 0, 2**14)),
        (3, b"".join(struct.pack("<i", value)[:3] for value in (-(2**23), -(2**22), 0, 2**22))),
        (4, struct.pack("<4i", -(2**31), -(2**30), 0, 2**30)),
    ],
)
def test_each_width_fills_the_same_range(tmp_path: Path, width: int, data: bytes) -> None:
    samples, rate = read_wav(wav(tmp_path / "a.wav", data, width, rate=1234))
    assert samples.dtype == np.float32
    assert samples.tolist() == [-1, -0.5, 0, 0.5]
    assert rate == 1234


def test_channels_are_averaged(tmp_path: Path) -> None:
    data = struct.pack("<6h", 16384, 0, -16384, -16384, 8192, 24576)
    assert read_wav(wav(tmp_path / "a.wav", data, channels=2))[0].tolist() == [0.25, -0.5, 0.5]
    assert read_wav(wav(tmp_path / "b.wav", data, channels=3))[0].tolist() == [0.0, float(np.float32(1 / 6))]


def test_a_folder_of_sounds(tmp_path: Path) -> None:
    made = read_labelled("audio", str(sounds(tmp_path)))
    assert made.classes == ("a", "b")
    lengths = [len(examples.row(0)) for examples in made.splits.values()]
    assert set(lengths) <= {5, 6, 7}
    for examples in made.splits.values():
        row = examples.row(0)
        assert row.shape == (len(row), 1)
        assert np.array_equal(row, np.full_like(row, (len(row) - 5) / 32768))


def test_sounds_that_cannot_be_read(tmp_path: Path) -> None:
    bad = sounds(tmp_path) / "b" / "1.wav"
    whole = bad.read_bytes()
    floats = whole.replace(struct.pack("<IHH", 16, 1, 1), struct.pack("<IHH", 16, 3, 1))
    assert floats != whole
    for data in (b"", b"hello", whole[:20], whole[:30], floats):
        bad.write_bytes(data)
        assert f"{bad} must be a readable PCM .wav" in refusal("audio", tmp_path)
    bad.write_bytes(whole[:-2])
    assert f"{bad} must be whole and hold samples, got 10 bytes where its header says 12" in refusal(
        "audio", tmp_path
    )
    wav(bad, b"")
    assert f"{bad} must be whole and hold samples" in refusal("audio", tmp_path)
    wav(bad, b"1234", rate=16000)
    said = refusal("audio", tmp_path)
    assert f"{bad} must have the sample rate 8000 of {tmp_path}/a/0.wav, got 16000" in said
    bad.rename(bad.with_suffix(".mp3"))
    assert "1.mp3 must end in one of .wav, got '.mp3'" in refusal("audio", tmp_path)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((2, 3, 2)), "x must be [n, samples], got the shape (2, 3, 2)"),
        (np.ones((2, 3), np.int32), "x must be int16 or float, got int32"),
        (np.ones((2, 3), complex), "x must be int16 or float, got complex128"),
    ],
)
def test_arrays_that_are_no_sound(tmp_path: Path, x: np.ndarray, message: str) -> None:
    np.savez(tmp_path / "a.npz", x=x, y=np.array([0, 1]))
    assert message in refusal("audio", tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", [".npy", ".xyz", ".txt", ".csv"])
def test_point_files(tmp_path: Path, suffix: str) -> None:
    made = read_labelled("points", str(point_files(tmp_path, suffix)))
    assert made.shape is None
    for examples in made.splits.values():
        assert examples.values.dtype == np.float32
        assert np.array_equal(examples.row(0), np.arange(6).reshape(2, 3))


def test_lines_of_points(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("\ufeffX,Y,Z\n# a note\n\n1, 2,3e1 # here\n-1\t-2\t-3\r\n")
    assert read_point_file(path).tolist() == [[1, 2, 30], [-1, -2, -3]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold points, got none"),
        ("# nothing\n", "must hold points, got none"),
        ("1 2 3\n1 2\n", "line 2 must be three numbers, got '1 2'"),
        ("1 2 3 4\n", "line 1 must be three numbers"),
        ("1 2 x\n", "line 1 must be three numbers"),
        ("1 2 3\n\nnan 0 0\n", "line 3 must be finite, got (nan, 0.0, 0.0)"),
        ("1 2 1e39\n", "line 1 must be finite"),
        ("\x00\udcff", "line 1 must be three numbers"),
    ],
)
def test_lines_that_are_no_points(tmp_path: Path, text: str, message: str) -> None:
    bad = point_files(tmp_path, ".xyz") / "b" / "1.xyz"
    bad.write_bytes(text.encode("utf-8", "surrogateescape"))
    said = refusal("points", tmp_path)
    assert message in said
    assert str(bad) in said


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((2, 4)), "must be [points, 3], got the shape (2, 4)"),
        (np.ones((0, 3)), "must be [points, 3], got the shape (0, 3)"),
        (np.ones((2, 3), bool), "must be numbers, got bool"),
        (np.array([[0, 0, 0], [0, -np.inf, 0]]), "[1] must be finite, got -inf"),
        (np.array([[None] * 3]), "must be an array without objects"),
    ],
)
def test_arrays_that_are_no_points(tmp_path: Path, array: np.ndarray, message: str) -> None:
    bad = point_files(tmp_path, ".npy") / "a" / "2.npy"
    np.save(bad, array)
    said = refusal("points", tmp_path)
    assert message in said
    assert str(bad) in said
    np.savez(tmp_path / "a.npz", x=array[None], y=np.array([0]))
    assert str(tmp_path / "a.npz") in refusal("points", tmp_path / "a.npz")


def test_damaged_npy(tmp_path: Path) -> None:
    bad = point_files(tmp_path, ".npy") / "a" / "2.npy"
    whole = bad.read_bytes()
    for data in (b"", b"hello", whole[:50], whole[:-5], whole[:12] + b"((((" + whole[16:]):
        bad.write_bytes(data)
        assert f"{bad} must be an array without objects" in refusal("points", tmp_path)
