"""The benchmark: what is measured, what is kept, what is refused, and arithmetic by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.catalog import MECHANISMS
from mapformers.cli.main import run
from mapformers.core.errors import MapformersError
from mapformers.core.plans import Plan, Windows
from mapformers.core.scope import Scope
from mapformers.measure import bench_peers, point
from mapformers.measure.bench import Bench, crossover, growth, run_bench
from mapformers.measure.bench_table import bench_table
from mapformers.measure.facts import machine
from mapformers.measure.point import Point, deviation
from mapformers.measure.record import read_record
from mapformers.measure.specs import bench_specs, chosen
from mapformers.mechanisms.sparse.band import Band

TIMES = {"min": 0.01, "median": 0.02, "runs": 2, "times_faster": 3.0}
FIGURES = {"core": TIMES, "core_forward": TIMES, "layer": TIMES, "decode": None, "peak_mb": 5.0}


def quiet(text: str) -> None:
    pass


def torch_bench(*mechanisms: str, lengths: tuple[int, ...] = (64, 128), **more: Any) -> Bench:
    return Bench(mechanisms, lengths, kernel="torch", **more)


def test_every_mechanism_of_the_catalogue_has_a_spec_that_can_be_built() -> None:
    for n in (64, 1024, 16384):
        specs = bench_specs(n)
        assert list(specs) == [entry.card.name for entry in MECHANISMS]
        for text, entry in zip(specs.values(), MECHANISMS, strict=True):
            mf.attention(text, 64, 4, causal=entry.card.causal == "strict")


def test_commas_inside_of_options_do_not_part() -> None:
    assert chosen("band, routing(clusters=4, window=8),linear") == (
        "band",
        "routing(clusters=4, window=8)",
        "linear",
    )
    assert chosen("all") == tuple(entry.card.name for entry in MECHANISMS)


def test_points_are_kept_and_a_run_goes_on(tmp_path: Path) -> None:
    file, seen = tmp_path / "b.json", []

    def cut_off(asked: Point) -> dict[str, Any]:
        seen.append((asked.spec, asked.length))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return {**FIGURES, "spec": asked.spec}

    asked = torch_bench("linear", "band(window=4)")
    with pytest.raises(KeyboardInterrupt):
        run_bench(asked, file, "bench", quiet, measure=cut_off)
    held = read_record(file, "bench")
    assert {name: list(rows) for name, rows in held["points"].items()} == {
        "linear": ["64"],
        "band(window=4)": ["64"],
    }
    with pytest.raises(MapformersError, match="exists already"):
        run_bench(asked, file, "bench", quiet, measure=cut_off)
    said: list[str] = []
    body = run_bench(asked, file, "bench", said.append, resume=True, measure=cut_off)
    assert seen[3:] == [("linear", 128), ("band(window=4)", 128)]
    assert said[0] == "1/2  linear at 128 tokens"
    assert said[1].startswith("2/2  band(window=4) at 128 tokens, about 0:")
    assert read_record(file, "bench")["points"] == body["points"]
    with pytest.raises(MapformersError, match="must be of the settings"):
        run_bench(torch_bench("linear", rounds=2), file, "bench", quiet, resume=True, measure=cut_off)


def test_growth_and_crossover_by_hand() -> None:
    def rows(**times: tuple[float, float, float]) -> dict[str, dict[str, Any]]:
        return {
            n[1:]: {"core": {"min": seconds, "times_faster": faster}, "peak_mb": mb}
            for n, (seconds, faster, mb) in times.items()
        }

    some = rows(n100=(1.0, 0.5, 10.0), n400=(4.0, 2.0, 160.0))
    assert growth(some, lambda row: row["core"]["min"]) == pytest.approx(1.0)
    assert growth(some, lambda row: row["peak_mb"]) == pytest.approx(2.0)
    assert crossover(some) == pytest.approx(200.0)  # half way, in logarithms
    assert crossover(rows(n100=(1.0, 1.5, 1.0), n400=(1.0, 2.0, 1.0))) == 0.0
    assert crossover(rows(n100=(1.0, 1.5, 1.0), n400=(1.0, 0.9, 1.0))) is None
    assert growth(rows(n100=(1.0, 1.5, 1.0)), lambda row: row["core"]["min"]) is None
    assert crossover({"100": {"left_out": "too slow"}}) is None


class OffByOne(Band):
    """A band whose plan sees one key more than its definition."""

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        made = super().plan(q, k, scope)
        assert isinstance(made, Windows)
        return Windows(made.before + 1, made.after)


def test_a_deviation_from_the_definition_is_found() -> None:
    assert deviation(OffByOne(Band.Config(window=4)), "float64", True) > 1e-3
    assert deviation(Band(Band.Config(window=4)), "float64", True) < 1e-12


def test_red_shows_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(point, "_mechanism", lambda text: OffByOne(Band.Config(window=4)))
    found = point.measure(Point("band(window=4)", 64, kernel="torch", rounds=1))
    assert "red" in found
    assert not {"core", "core_forward", "layer", "decode"} & set(found)
    body = {
        "settings": torch_bench("linear").settings(),
        "points": {"band(window=4)": {"64": found}},
        "summary": {"band(window=4)": {"growth_time": None, "growth_memory": None, "crossover": None}},
    }
    shown = bench_table(body, machine())
    assert "RED: deviates from its definition by" in shown
    assert " ms" not in shown.split("tokens")[1].split("\n")[1]


def test_what_is_measured_is_whole(tmp_path: Path) -> None:
    found = point.measure(Point("band(window=8)", 128, kernel="torch", rounds=1))
    assert {"core", "core_forward", "layer", "decode", "deviation", "flops_ratio"} <= set(found)
    assert found["core"]["times_faster"] == found["sdpa_core"]["min"] / found["core"]["min"]
    assert 0 < found["decode"]["min"] < 1
    assert found["flops_ratio"] >= 1
    refused = point.measure(Point("nystrom(landmarks=8)", 64, kernel="torch", rounds=1))
    assert refused["decode"] is None
    assert "causal" in refused["decode_reason"]


def test_long_runs_are_repeated_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 0.0}
    monkeypatch.setattr(point.time, "perf_counter", lambda: clock["now"])

    def takes(seconds: float) -> Callable[[], None]:
        return lambda: clock.update(now=clock["now"] + seconds)

    times = point.alternate({"shortest": takes(1 / 1024), "short": takes(1 / 8), "long": takes(5.0)}, 5)
    assert times["shortest"]["runs"] == 40
    assert times["short"] == {"min": pytest.approx(1 / 8), "median": pytest.approx(1 / 8), "runs": 5}
    assert times["long"]["runs"] == 2
    assert times["long"]["min"] == pytest.approx(5.0)


def test_the_table_fits_the_terminal() -> None:
    rows = {"256": {**FIGURES, "flops_ratio": 1.0}, "65536": {"left_out": "a pass would take about 99 s"}}
    points = {"a_mechanism_with_a_very_long_name(window=3)": rows}
    summary = {next(iter(points)): {"growth_time": 1.0, "growth_memory": 1.0, "crossover": 12345.0}}
    body = {"settings": torch_bench("linear").settings(), "points": points, "summary": summary}
    shown = bench_table(body, machine())
    assert max(map(len, shown.splitlines())) <= 80
    assert "left out: a pass would take" in shown
    assert "12,345" in shown


@pytest.mark.slow
def test_the_command_measures_in_processes_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "b.json"
    words = ["--mechanisms", "band", "--lengths", "64,128", "--kernel", "torch", "--rounds", "1"]
    assert run(["bench", *words, "--json", str(file)]) == 0
    shown = capsys.readouterr()
    assert "faster from" in shown.out
    assert "2/2  band at 128 tokens" in shown.err
    held = read_record(file, "bench")
    assert set(held["points"]["band"]) == {"64", "128"}
    assert "mapformers" in held["command"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mechanisms", "bnad"], "nearest: band"),
        (["--mechanisms", "band:2 + full:2"], "must be one mechanism for all heads"),
        (["--lengths", "1k,two"], "mend 'two'"),
        (["--lengths", "8"], "must be 64 or more"),
        (["--dtype", "float16"], "nearest:"),
        (["--rounds", "0"], "--rounds must be 1 or more"),
    ],
)
def test_bad_input_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", *words]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.count("\n") == 1


def test_without_any_peer_the_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_peers, "_version", lambda package: None)
    assert run(["bench", "--peers"]) == 2
    assert "pip install local-attention routing-transformer" in capsys.readouterr().err


@pytest.mark.parametrize("name", bench_peers.BENCH_PEERS)
@pytest.mark.peers
def test_a_peer_runs_forward_and_backward(name: str) -> None:
    if bench_peers._version(bench_peers.BENCH_PEERS[name].package) is None:
        pytest.skip(f"{name} is not installed: make full installs it")
    found = point.measure(Point(name, 256, rounds=1, peer=True))
    assert found["core"]["min"] > 0
    assert json.dumps(found)


def test_the_inputs_are_the_same_in_every_process() -> None:
    first, second = point.inputs(64, "float32"), point.inputs(64, "float32")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
