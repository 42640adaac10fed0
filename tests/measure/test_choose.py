"""The chooser: what cannot is left out, the rest is ranked by what was measured."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mapformers.catalog import MECHANISMS
from mapformers.cli.main import run
from mapformers.core.errors import MapformersError
from mapformers.measure.choose import Question, choose, predicted
from mapformers.measure.record import VERSIONS, write_record
from mapformers.measure.shipped import shipped

ROOT = Path(__file__).resolve().parents[2]


def bench(**faster: float) -> dict[str, Any]:
    """Made-up results at 1,024 and 4,096 tokens: time grows linearly, memory too, and the lead doubles."""

    def rows(lead: float) -> dict[str, Any]:
        return {
            str(n): {"core": {"min": n / 1e6, "times_faster": lead * n / 1024}, "peak_mb": n / 16}
            for n in (1024, 4096)
        }

    return {"points": {name: rows(lead) for name, lead in faster.items()}}


def recall(**accuracy: float) -> dict[str, Any]:
    rows = {name: {"runs": {"0": {}}, "summary": {"score": {"mean": a}}} for name, a in accuracy.items()}
    return {"rows": rows}


def test_figures_between_and_beyond_the_measured_lengths() -> None:
    rows = bench(band=2.0)["points"]["band"]
    assert predicted(rows, 2048, "seconds") == pytest.approx(2048e-6)
    assert predicted(rows, 512, "memory") == pytest.approx(32)
    assert predicted(rows, 65536, "faster") == pytest.approx(128)
    assert predicted({"1024": rows["1024"]}, 2048, "seconds") is None


def test_the_order_follows_speed_and_recall() -> None:
    made = bench(full=0.5, band=4.0, routing=2.0)
    names = [one.name for one in choose(Question(4096, causal=True), made, None)]
    assert names[:2] == ["band", "routing"]
    found = recall(full=1.0, band=0.0, routing=1.0)
    asked = Question(4096, causal=True, task="recall")
    ranked = choose(asked, made, found)
    assert [one.name for one in ranked[:3]] == ["routing", "full", "band"]
    assert "accuracy 1.00 in recall" in ranked[0].reasons
    assert ranked[0].points == pytest.approx(3.003 + 4)  # 8 times faster, and all answers right
    assert "recall not measured" in ranked[3].reasons


def test_beyond_a_point_speed_breaks_ties_only() -> None:
    made = bench(band=64.0, linear=256.0)  # 256 and 1,024 times faster
    fast, less = choose(Question(4096, causal=True), made, None)[:2]
    assert (fast.name, less.name) == ("linear", "band")
    assert fast.points - less.points == pytest.approx(0.002)


def test_what_cannot_is_left_out_with_its_reason() -> None:
    made = bench(**{entry.card.name: 1.0 for entry in MECHANISMS})  # type: ignore[attr-defined]
    out = {one.name: one.left_out for one in choose(Question(4096, causal=True), made, None)}
    assert out["nystrom"] == "cannot be causal"
    assert not out["routing"]
    out = {one.name: one.left_out for one in choose(Question(4096, cross=True), made, None)}
    assert out["nsa"] == "is causal only"
    assert out["band"] == "takes no cross-attention"
    out = {one.name: one.left_out for one in choose(Question(4096, pretrained=True), made, None)}
    assert "softmax" in out["linear"]
    assert not out["longformer"]
    assert "parameters of its own" in out["nystrom"]  # its convolution
    out = {one.name: one.left_out for one in choose(Question(4096, memory_mb=100), made, None)}
    assert out["full"] == "needs about 256 MB"


def test_without_results_nothing_is_made_up() -> None:
    for one in choose(Question(4096), None, None):
        assert one.seconds is None
        assert one.reasons == ("speed not measured",)


def test_the_command_names_the_next_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["choose", "--length", "64k", "--decode", "--task", "language", "--all"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "mapformers train laptop --output runs/" in shown
    assert "left out: nystrom cannot be causal" in shown
    assert run(["choose", "--length", "4096", "--memory", "1.5GB", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["question"]["memory_mb"] == 1536
    assert len(said["choices"]) == len(MECHANISMS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--length", "many"], "--length must be a number"),
        (["--length", "0"], "--length must be 1 or more"),
        (["--length", "4k", "--memory", "8"], "--memory must be a size as 500MB or 8GB"),
        (["--length", "4k", "--task", "langauge"], "nearest: language"),
    ],
)
def test_bad_input_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["choose", *words]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.count("\n") == 1


def test_shipped_results_are_those_of_the_benchmarks() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "ship_results.py"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "all fresh", "run: python tools/ship_results.py --write"


def test_other_versions_are_refused(tmp_path: Path) -> None:
    assert shipped("bench", "bench", tmp_path) is None
    write_record(tmp_path / "bench.json", "bench", "", {"points": {}})
    assert shipped("bench", "bench", tmp_path) is not None
    text = (
        (tmp_path / "bench.json").read_text().replace('"version": 1', f'"version": {VERSIONS["bench"] + 1}')
    )
    (tmp_path / "bench.json").write_text(text)
    with pytest.raises(MapformersError, match=r"must be bench of version 1, got \('bench', 2\)"):
        shipped("bench", "bench", tmp_path)
