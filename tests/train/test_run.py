"""A whole run in its folder: what it leaves, how it resumes, and what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mapformers.core.errors import MapformersError
from mapformers.models import MapformerForCausalLM
from mapformers.report.results import read_metrics
from mapformers.tasks.corpus import load_corpus
from mapformers.train import checkpoint
from mapformers.train.assess import assess
from mapformers.train.folder import open_run
from mapformers.train.run import Request, train
from mapformers.train.task import Asked
from tests.train.tiny import SETTINGS, write_text_file

NOT_THE_SAME_TWICE = ("tokens_per_second",)


def request(folder: Path, name: str, *settings: str, **changes: Any) -> Request:
    source = folder / "text.txt"
    if not source.exists():
        write_text_file(folder)
    given = {"data": str(source), **changes}
    return Request("demo", folder / name, settings=(*SETTINGS, *settings), **given)


def numbers(run: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says, without what depends on the clock."""
    lines = read_metrics(run / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in NOT_THE_SAME_TWICE} for line in lines]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.checkpoints(run)[-1][1] / "model.safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps, uninterrupted."""
    folder = tmp_path_factory.mktemp("finished")
    train(request(folder, "run"))
    return folder / "run"


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(finished.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run"


def test_what_a_run_leaves(finished: Path) -> None:
    found = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    inside = (
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "rng.0.safetensors",
        "trainer_state.json",
    )
    wanted = {"config.yaml", "metrics.jsonl", "report.html", "results.json", "data/facts.json"}
    wanted |= {f"data/{split}.bin" for split in ("train", "valid", "test")}
    wanted |= {f"checkpoint-{step}/{name}" for step in (4, 6) for name in inside}
    assert found == wanted


def test_metrics_hold_losses_and_validation(finished: Path) -> None:
    lines = read_metrics(finished / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    checks = [line for line in lines if "valid_bits_per_byte" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in checks] == [3, 6]
    assert set(steps[0]) >= {"bits_per_byte", "losses", "learning_rate", "grad_norm", "tokens_per_second"}
    assert set(steps[0]["losses"]) == {"commitment"}
    assert checks[0]["telemetry"][0] == {}
    assert set(checks[0]["telemetry"][1]) >= {
        "occupancy_entropy",
        "dead_clusters",
        "mean_horizon",
        "centroid_drift",
    }
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_results_hold_scores(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert results["step"] == 6
    assert (
        results["test"]["bytes"] == load_corpus(open_run(finished).data).facts["splits"]["test"]["bytes"] - 1
    )
    assert set(results["baselines"]) == {"unigram", "ngram", "xz"}
    assert results["prefix"]["agrees"]


def test_a_checkpoint_loads_with_from_pretrained(finished: Path) -> None:
    model = MapformerForCausalLM.from_pretrained(finished / "checkpoint-6")
    assert model.config.max_position_embeddings == 32


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers(finished: Path, tmp_path: Path) -> None:
    train(request(tmp_path, "run"))
    assert numbers(tmp_path / "run") == numbers(finished)
    same, other = weights(finished), weights(tmp_path / "run")
    assert all(torch.equal(same[name], other[name]) for name in same)
    train(request(tmp_path, "seeded", seed=1))
    assert numbers(tmp_path / "seeded") != numbers(finished)


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["after", "inside", "before"])
def test_resume_gives_the_numbers_of_an_uninterrupted_run(finished: Path, copy: Path, cut: str) -> None:
    shutil.rmtree(copy / "checkpoint-6")
    (copy / "results.json").unlink()
    if cut == "inside":  # a checkpoint half written, a line half written
        shutil.copytree(copy / "checkpoint-4", copy / "checkpoint-6")
        (copy / "checkpoint-6" / "manifest.json").unlink()
        with (copy / "metrics.jsonl").open("a") as file:
            file.write('{"step": 6, "lo')
    if cut == "before":
        shutil.rmtree(copy / "checkpoint-4")
    train(Request(None, copy, resume=True))
    assert numbers(copy) == numbers(finished)
    same, other = weights(finished), weights(copy)
    assert all(torch.equal(same[name], other[name]) for name in same)


@pytest.mark.slow
def test_resume_with_dropout_restores_the_random_state(tmp_path: Path) -> None:
    dropout = ("model.residual_dropout=0.2", "model.attention_dropout=0.1")
    train(request(tmp_path, "whole", *dropout))
    train(request(tmp_path, "cut", *dropout))
    shutil.rmtree(tmp_path / "cut" / "checkpoint-6")
    train(request(tmp_path, "cut", *dropout, resume=True))
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")


@pytest.mark.slow
def test_resume_may_add_steps(copy: Path) -> None:
    results = train(Request(None, copy, max_steps=8, resume=True))
    assert results is not None
    assert results["step"] == 8
    assert open_run(copy).preset.training.max_steps == 8


def test_resume_of_a_finished_run_scores_nothing_again(copy: Path) -> None:
    before = (copy / "results.json").read_text()
    assert train(Request(None, copy, resume=True)) == json.loads(before)


@pytest.mark.slow
def test_resume_starts_where_nothing_lies(tmp_path: Path) -> None:
    results = train(request(tmp_path, "new", "training.max_steps=2", resume=True))
    assert results is not None
    assert results["step"] == 2


@pytest.mark.slow
def test_accumulated_batches_are_the_batches_of_one_step(tmp_path: Path) -> None:
    """The same sequences in one batch of 4 or as 2 x 2: the same loss and, to rounding, the same step."""
    train(request(tmp_path, "one", "data.batch=4", "training.max_steps=3"))
    train(request(tmp_path, "two", "data.batch=2", "training.accumulate=2", "training.max_steps=3"))
    one, two = numbers(tmp_path / "one"), numbers(tmp_path / "two")
    assert [line["loss"] for line in one if "loss" in line] == pytest.approx(
        [line["loss"] for line in two if "loss" in line], rel=1e-4
    )


@pytest.mark.slow
def test_a_folder_with_a_run_or_with_other_files_is_refused(copy: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    with pytest.raises(MapformersError, match="must not hold another run"):
        train(request(tmp_path, "run"))
    assert before == {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(MapformersError, match="must be new or empty"):
        train(request(tmp_path, "full"))


def test_resume_refuses_other_settings(copy: Path, tmp_path: Path) -> None:
    source = open_run(copy).preset.data.source
    with pytest.raises(MapformersError, match=r"model\.hidden_size must stay"):
        train(request(tmp_path, "run", "model.hidden_size=32", data=source, resume=True))
    with pytest.raises(MapformersError, match="must hold a run to resume"):
        train(Request(None, tmp_path / "nothing", resume=True))
    with pytest.raises(MapformersError, match="a preset must be named"):
        train(Request(None, copy, seed=3, resume=True))


@pytest.mark.parametrize(
    "settings", [("data.context=100000",), ("model.hidden_size=17",), ("model.layers.0.attention=bnd",)]
)
def test_bad_input_leaves_nothing_behind(tmp_path: Path, settings: tuple[str, ...]) -> None:
    asked = request(tmp_path, "deep/run", *settings)
    with pytest.raises(MapformersError):
        train(asked)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt"]


@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.safetensors", "manifest.json", "config.json"]
)
def test_a_damaged_checkpoint_is_refused(copy: Path, file: str) -> None:
    path = copy / "checkpoint-6" / file
    path.write_bytes(path.read_bytes()[:-20] + b"x" * 3)
    for attempt in (lambda: assess(copy), lambda: train(Request(None, copy, max_steps=8, resume=True))):
        with pytest.raises(MapformersError, match="checkpoint-6") as caught:
            attempt()
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_refused(copy: Path, tmp_path: Path) -> None:
    train(request(tmp_path, "other", "model.hidden_size=32"))
    shutil.rmtree(copy / "checkpoint-6")
    shutil.copytree(tmp_path / "other" / "checkpoint-6", copy / "checkpoint-6")
    with pytest.raises(MapformersError, match=r"must hold the model of config\.yaml"):
        train(Request(None, copy, max_steps=8, resume=True))


@pytest.mark.slow
def test_a_foreign_optimizer_is_refused(copy: Path) -> None:
    folder = copy / "checkpoint-6"
    save_file({"a": torch.zeros(1)}, folder / "optimizer.safetensors")
    checkpoint.complete(folder)
    with pytest.raises(MapformersError, match=r"optimizer\.safetensors must be"):
        train(Request(None, copy, max_steps=8, resume=True))


@pytest.mark.parametrize("failing", ["model.safetensors", "optimizer.safetensors", "metrics.jsonl"])
@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    asked = request(tmp_path, "run")
    with monkeypatch.context() as disk:
        if failing == "model.safetensors":
            disk.setattr(
                MapformerForCausalLM, "save_pretrained", _full_after(MapformerForCausalLM.save_pretrained, 2)
            )
        elif failing == "optimizer.safetensors":
            disk.setattr(checkpoint, "save_optimizer", _full_after(checkpoint.save_optimizer, 2))
        else:
            disk.setattr(Path, "open", _full_after(Path.open, 6, only=failing))
        with pytest.raises(MapformersError, match=r"No space left.*--resume") as caught:
            train(asked)
    assert "\n" not in str(caught.value)
    assert [step for step, _ in checkpoint.checkpoints(tmp_path / "run")] == [2, 4]
    train(Request(None, tmp_path / "run", resume=True))
    assert numbers(tmp_path / "run") == numbers(finished)


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(MapformersError, match=r"loss must be finite.*learning_rate"):
        train(request(tmp_path, "run", "optimiser.learning_rate=1e30", "optimiser.clip=0"))


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_another(finished: Path, tmp_path: Path) -> None:
    """At once as good as the other ended, also with a longer context and wider windows."""
    longer = ("data.context=64", "model.layers.0.attention=band(window=16)", "training.max_steps=1")
    small_steps = ("optimiser.learning_rate=1e-9", "optimiser.warmup_steps=0")
    train(request(tmp_path, "run", *longer, *small_steps, start_from=finished))
    first = next(line["loss"] for line in numbers(tmp_path / "run") if "loss" in line)
    losses = [line["loss"] for line in numbers(finished) if "loss" in line]
    assert abs(first - losses[-1]) < abs(first - losses[0])
    same, other = weights(finished), weights(tmp_path / "run")
    assert all(torch.allclose(same[name], other[name], atol=1e-6) for name in same if "kmeans" not in name)


@pytest.mark.parametrize(
    ("setting", "start", "rule"),
    [
        ("model.intermediate_size=48", "finished", "--from: .* must have shape"),
        ("data.batch=2", "nowhere", "must exist"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(
    finished: Path, tmp_path: Path, setting: str, start: str, rule: str
) -> None:
    path = finished if start == "finished" else tmp_path / start
    with pytest.raises(MapformersError, match=rule):
        train(request(tmp_path, "run", setting, start_from=path))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_bfloat16_learns_like_float32_and_resumes(finished: Path, tmp_path: Path) -> None:
    """Autocast: weights stay float32, losses follow those of float32, a resumed run goes on the same way."""
    run = tmp_path / "run"
    train(request(tmp_path, "run", "training.precision=bfloat16"))
    half, whole = ([line["loss"] for line in numbers(x) if "loss" in line] for x in (run, finished))
    assert half != whole
    assert half == pytest.approx(whole, rel=0.01)
    assert {x.dtype for x in weights(run).values() if x.is_floating_point()} == {torch.float32}
    before = numbers(run)
    shutil.rmtree(run / "checkpoint-6")
    train(Request(None, run, resume=True))
    assert numbers(run) == before


@pytest.mark.slow
@pytest.mark.parametrize(("fast", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_a_run_keeps_the_precision_that_auto_chose(
    fast: bool, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mapformers.train.precision.has_fast_bfloat16", lambda: fast)
    train(request(tmp_path, "run", "training.precision=auto", max_steps=2))
    assert open_run(tmp_path / "run").preset.training.precision == precision


def test_eval_of_the_run_and_of_other_text(finished: Path, tmp_path: Path) -> None:
    own = assess(finished, Asked(positions=20))
    assert own["bits_per_byte"] == pytest.approx(
        json.loads((finished / "results.json").read_text())["test"]["bits_per_byte"]
    )
    assert own["agrees"]
    assert own["split"] == "test"
    path = tmp_path / "letter.txt"
    path.write_bytes(b"dear self.value")
    other = assess(finished, Asked(data=str(path)))
    assert (other["bytes"], other["split"]) == (14, "all")
    with pytest.raises(MapformersError, match="--split is unknown"):
        assess(finished, Asked(split="tset"))
    with pytest.raises(MapformersError, match="must exist"):
        assess(tmp_path / "nowhere")


def _full_after(function: Any, calls: int, only: str | None = None) -> Any:
    """The function, until the disk is full."""
    count = 0

    def limited(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += only is None or getattr(self, "name", "") == only
        if count > calls:
            raise OSError(28, "No space left on device")
        return function(self, *args, **kwargs)

    return limited
