"""Comparisons: equal terms, what is kept, what is refused, and arithmetic by hand."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from mapformers.cli.main import run
from mapformers.core.errors import MapformersError
from mapformers.measure.record import read_record
from mapformers.study.compare import Children, Comparison, check_fair, compare, mean_and_error, summary
from mapformers.study.table import compare_table, save_plot, sorted_rows
from mapformers.study.tasks import TASKS, map_attentions
from mapformers.study.worker import Job
from mapformers.train.models import config_of, model_class

PAIR = ("full", "band(window=8)")
ROBUST = {"0.0": 0.9, "0.25": 0.8, "0.5": 0.6, "0.75": 0.4}
FOUND = {"unit": "accuracy", "speed": 100.0, "counted": "examples", "seconds": 5.0, "peak_mb": 300.0}


def quiet(text: str) -> None:
    pass


def asked(folder: Path, *attentions: str, **more: Any) -> Comparison:
    return Comparison("mqar", attentions or PAIR, folder, **{"seeds": 2, **more})


def scores(job: Job, children: Children) -> dict[str, Any]:
    """Full attention is better, and each seed differs."""
    full = "full" in Path(job.folder).name
    return {**FOUND, "score": (0.9 if full else 0.1) + 0.02 * job.seed, "robustness": ROBUST}


def test_statistics_by_hand() -> None:
    assert mean_and_error([1.0, 2.0, 3.0]) == {"mean": 2.0, "standard_error": pytest.approx(1 / 3**0.5)}
    assert mean_and_error([4.0]) == {"mean": 4.0, "standard_error": 0.0}
    runs = [{**FOUND, "score": 1.0, "speed": s, "robustness": ROBUST} for s in (1.0, 9.0, 5.0)]
    made = summary(runs)
    assert made["speed"] == 5.0
    assert made["robustness"]["0.5"] == {"mean": pytest.approx(0.6), "standard_error": pytest.approx(0)}


def test_the_best_row_stands_first_and_the_file_holds_all(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    body = compare(asked(tmp_path), file, "mapformers compare mqar", quiet, scores)
    assert [text for text, _ in sorted_rows(body)] == ["full", "band(window=8)"]
    assert sorted_rows({**body, "lower_is_better": True})[0][0] == "band(window=8)"
    held = read_record(file, "compare")
    assert held["rows"] == body["rows"]
    assert held["rows"]["full"]["summary"]["score"] == {
        "mean": pytest.approx(0.91),
        "standard_error": pytest.approx(0.01),
    }
    shown = compare_table(body)
    assert max(map(len, shown.splitlines())) <= 80
    assert "0.9100 ± 0.0100" in shown
    assert "75 %" in shown


def test_a_failing_run_is_named_and_what_ended_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "c.json"

    def second_fails(job: Job, children: Children) -> dict[str, Any]:
        if "band" in job.folder:
            raise MapformersError("compare: band must train to its end, got a full disk")
        return scores(job, children)

    with pytest.raises(MapformersError, match="a full disk"):
        compare(asked(tmp_path, seeds=1), file, "", quiet, second_fails)
    assert list(read_record(file, "compare")["rows"]["full"]["runs"]) == ["0"]


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the package matplotlib")
    body = compare(asked(tmp_path), None, "", quiet, scores)
    save_plot(body, tmp_path / "c.svg")
    save_plot(body, tmp_path / "again.svg")
    assert b"irrelevant tokens" in (tmp_path / "c.svg").read_bytes()
    assert (tmp_path / "c.svg").read_bytes() == (tmp_path / "again.svg").read_bytes()


def test_unequal_parameters_are_refused_before_anything_runs(tmp_path: Path) -> None:
    unequal = asked(tmp_path, "full", "linformer(length=64)")
    with pytest.raises(MapformersError, match="must fit the task mqar"):  # it refuses to be causal
        check_fair(unequal)
    bigger = asked(tmp_path, "full", "low_rank_band(rank=64)")
    with pytest.raises(MapformersError, match=r"equal within 2 %, got [\d,]+ of full and [\d,]+ of low"):
        check_fair(bigger)
    counts = check_fair(asked(tmp_path, "full", "low_rank_band(rank=64)", allow_unequal=True))
    assert len(set(counts.values())) == 2


def test_the_map_is_at_least_twelve_causal_attentions_of_equal_size(tmp_path: Path) -> None:
    for task in ("mqar", "stdlib"):
        made = Comparison(task, ("map",), tmp_path)
        assert len(made.specs()) >= 12
        assert len(set(check_fair(made).values())) >= 1
    assert set(asked(tmp_path, "map", "full").specs()) == set(map_attentions(64))


def checksum(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("task", TASKS)
def test_all_rows_of_a_seed_start_alike(task: str, tmp_path: Path) -> None:
    """What two rows have in common, by name and shape, is the same at the start."""
    held = []
    for text in ("full", "band(window=8)", "linear"):
        preset = Comparison(task, PAIR, tmp_path).preset(text)
        model = model_class(preset)(config_of(preset))
        held.append({name: checksum(x) for name, x in model.named_parameters()})
    assert held[0] == held[1] == held[2]


@pytest.mark.slow
def test_the_command_trains_scores_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "compare",
        "mqar",
        "--attention",
        "full",
        "--attention",
        "linear",
        "--seeds",
        "1",
        "--steps",
        "2",
    ]
    words += ["--set", "data.batch=4", "--set", "data.valid_examples=8", "--set", "data.test_examples=8"]
    words += ["--set", "training.log_every=1", "--output", str(tmp_path / "runs")]
    file = tmp_path / "c.json"
    assert run([*words, "--json", str(file), "--workers", "2"]) == 0
    first = read_record(file, "compare")["rows"]
    shown = capsys.readouterr()
    assert "irrelevant tokens" in shown.out
    assert "2/2  " in shown.err
    config = (tmp_path / "runs" / "linear-0" / "config.yaml").read_text()
    assert "band(window=1)" in config
    assert "linear" in config
    assert run([*words, "--json", str(file)]) == 0  # finished: nothing is trained again
    assert read_record(file, "compare")["rows"] == first
    assert run([*words, "--set", "data.batch=2"]) == 2
    assert "data.batch must stay as the run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mqra", "--attention", "full", "--attention", "linear"], "nearest: mqar"),
        (["mqar"], "--attention must name two or more, got 0"),
        (["mqar", "--attention", "full", "--attention", "bnad"], "nearest: band"),
        (
            ["mqar", "--attention", "full", "--attention", "linear", "--seeds", "0"],
            "--seeds must be 1 or more",
        ),
        (["mqar", "--attention", "full", "--attention", "linear", "--plot", "a.gif"], "must end in .svg"),
        (
            ["mqar", "--attention", "full", "--attention", "nystrom"],
            "compare: nystrom must fit the task mqar",
        ),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["compare", *words, "--output", str(tmp_path / "x")]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert not (tmp_path / "x").exists()
