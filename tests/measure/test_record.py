"""Result files: whole, dated, and refused when they are something else."""

import json
from pathlib import Path

import pytest

from mapformers.core.errors import MapformersError
from mapformers.measure.record import VERSIONS, read_record, write_record


def test_what_is_written_is_read_with_its_command_and_machine(tmp_path: Path) -> None:
    file = tmp_path / "new" / "bench.json"
    write_record(file, "bench", "mapformers bench", {"points": {"band": 1}})
    held = read_record(file, "bench")
    assert held["points"] == {"band": 1}
    assert held["command"] == "mapformers bench"
    assert {"processor", "cores", "torch", "commit"} <= set(held["machine"])
    assert [path.name for path in file.parent.iterdir()] == ["bench.json"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "must be JSON"),
        ("[1]", "must hold results of bench, got others"),
        (json.dumps({"mapformers": "audit", "version": 1}), "must hold results of bench, got audit"),
        (json.dumps({"mapformers": "bench", "version": VERSIONS["bench"] + 1}), "must be of version"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "bench.json"
    file.write_text(text)
    with pytest.raises(MapformersError, match=words) as caught:
        read_record(file, "bench")
    assert str(file) in str(caught.value)
    assert "mapformers bench" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MapformersError, match=r"none\.json must be readable"):
        read_record(tmp_path / "none.json", "bench")
