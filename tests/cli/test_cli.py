"""The commands, as a user gives them: what they print, their exit codes, and one line for each mistake."""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mapformers.catalog import catalog
from mapformers.cli.main import COMMANDS, run
from mapformers.train.presets import preset_names
from tests.train.tiny import command, write_text_file

Result = tuple[int, str, str]
Cli = Callable[..., Result]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command in this process: exit code, stdout, stderr."""

    def call(*arguments: str) -> Result:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A run that was trained from the command line, and what the command showed."""
    folder = tmp_path_factory.mktemp("cli")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(command(write_text_file(folder), folder / "run"))
    return folder / "run", (code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def trained(training: tuple[Path, Result]) -> Path:
    """Its folder."""
    return training[0]


def refused(result: Result, *words: str) -> None:
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


@pytest.mark.slow
def test_train_prints_scores_and_what_to_do_next(training: tuple[Path, Result]) -> None:
    folder, (code, out, err) = training
    assert code == 0
    for text in (
        "this model, step 6",
        "unigram",
        "order-5 n-gram",
        "xz given",
        "they agree",
        "report.html",
        f"mapformers eval {folder}",
        f"mapformers generate {folder}",
    ):
        assert text in out
    for text in ("5,900 bytes", "SHA-256", "Python", "parameters", "bits/byte", "tokens/s", "left"):
        assert text in err


@pytest.mark.slow
def test_eval(cli: Cli, trained: Path) -> None:
    code, out, err = cli("eval", str(trained), "--json", "--prefix-only", "50", "--stride", "7")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result["stride"] == 7
    assert result["context"] == 32
    assert result["bytes"] == 299
    assert result["prefix_only_bits_per_byte"] == pytest.approx(result["teacher_forced_on_those"], abs=1e-4)
    assert result["positions"] == 50
    code, out, _ = cli("eval", str(trained))
    assert code == 0
    assert "bits per byte over 299 bytes (test of" in out


@pytest.mark.slow
def test_eval_of_one_checkpoint(cli: Cli, trained: Path) -> None:
    code, out, _ = cli("eval", str(trained / "checkpoint-4"), "--json")
    assert (code, json.loads(out)["step"]) == (0, 4)


@pytest.mark.slow
def test_generate(cli: Cli, trained: Path) -> None:
    first = cli("generate", str(trained), "--prompt", "def ", "--max-new-tokens", "20", "--seed", "5")
    assert first[0] == 0
    assert first[1].startswith("def ")
    assert first == cli("generate", str(trained), "--prompt", "def ", "--max-new-tokens", "20", "--seed", "5")
    assert first != cli("generate", str(trained), "--prompt", "def ", "--max-new-tokens", "20", "--seed", "6")
    greedy = cli("generate", str(trained), "--prompt", "def ", "--max-new-tokens", "20", "--temperature", "0")
    assert greedy[0] == 0


def test_list(cli: Cli) -> None:
    code, out, _ = cli("list", "--json")
    assert code == 0
    cards = json.loads(out)
    assert [card["name"] for card in cards] == [card.name for card in catalog()]
    for card in cards:
        assert {"name", "kind", "family", "causal", "supports", "paper", "formula", "options"} <= set(card)
    code, out, _ = cli("list")
    assert code == 0
    for name in [card["name"] for card in cards] + list(preset_names()):
        assert f"  {name} " in out


@pytest.mark.parametrize("name", [card.name for card in catalog()])
def test_show_every_entry(cli: Cli, name: str) -> None:
    code, out, _ = cli("show", name)
    assert code == 0
    card = next(card for card in catalog() if card.name == name)
    for option in card.options:
        assert f"{option.name}: {option.type} = {option.default!r}" in out
    assert (card.kind == "mechanism") == ("pattern of 32 random tokens" in out)
    code, out, _ = cli("show", name, "--json")
    assert json.loads(out) == card.as_dict()


def test_show_a_spec_uses_its_options(cli: Cli) -> None:
    code, out, _ = cli("show", "band(window=1)")
    assert code == 0
    rows = out.splitlines()[-32:]
    assert all(sum(cell not in "· " for cell in row) <= 4 for row in rows)


@pytest.mark.slow
def test_show_writes_pictures(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures as files need matplotlib")
    code, _, err = cli("show", "band", "--output", str(tmp_path / "band.svg"))
    assert code == 0
    assert "written" in err
    assert (tmp_path / "band.svg").read_text().startswith("<?xml")


def test_show_a_preset(cli: Cli) -> None:
    code, out, _ = cli("show", "routing-pg19", "--json")
    assert code == 0
    facts = json.loads(out)
    assert {
        "name",
        "kind",
        "family",
        "causal",
        "supports",
        "paper",
        "formula",
        "options",
        "parameters",
    } <= set(facts)
    assert facts["parameters"] > 300_000_000
    assert len(facts["layers"]) == 22
    code, out, _ = cli("show", "routing-pg19")
    assert f"{facts['parameters']:,}" in out
    assert "1-21   attention band" in out
    assert "deviations" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["nearest: train"]),
        (["train", "dmo"], ["preset", "nearest: demo"]),
        (["train", "demo", "--steps", "3"], ["--steps"]),
        (["train"], ["name a preset"]),
        (["train", "demo", "--set", "model.hiden_size=3"], ["nearest: hidden_size"]),
        (["train", "demo", "--set", "model.layers.0.attention=bandd"], ["nearest: band"]),
        (["train", "demo", "--set", "model.layers.0.attention=band(windo=3)"], ["nearest: window"]),
        (["train", "demo", "--set", "model.layers.2.attention=routing(clusters=0)"], ["clusters", "got 0"]),
        (["train", "demo", "--set", "model.layers.2.attention=routing(window=0)"], ["window", "got 0"]),
        (["train", "demo", "--set", "model.hidden_size=190"], ["hidden_size", "190"]),
        (["train", "demo", "--max-steps", "0"], ["max_steps", "got 0"]),
        (["train", "demo", "--max-steps", "many"], ["--max-steps"]),
        (["train", "demo", "--seed", "-1"], ["seed"]),
        (["train", "demo", "--data", "missing.txt"], ["missing.txt"]),
        (["eval", "missing"], ["missing"]),
        (["eval"], ["RUN"]),
        (["generate", "missing", "--prompt", "a"], ["missing"]),
        (["show", "bnd"], ["nearest: band"]),
        (["show", "band(windw=3)"], ["nearest: window"]),
        (["show", "alibi", "--output", "a.svg"], ["needs a mechanism"]),
        (["show", "demo", "--output", "a.svg"], ["leave it out"]),
        (["show", "band", "--output", "a.gif"], [".svg or .png"]),
    ],
)
def test_mistakes_get_one_line_and_write_nothing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(cli(*arguments), *words)
    assert list(tmp_path.iterdir()) == []


def test_bad_data_gets_one_line_and_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("short")
    for name, word in (("empty.txt", "must not be empty"), ("short.txt", "at least as long as the context")):
        refused(cli("train", "demo", "--data", str(tmp_path / name), "--output", str(tmp_path / "run")), word)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt", "short.txt"]


def test_a_run_is_not_overwritten(cli: Cli, trained: Path) -> None:
    refused(cli("train", "demo", "--output", str(trained)), "must not hold another run", "--resume")


def test_generate_checks_its_options(cli: Cli, trained: Path) -> None:
    refused(cli("generate", str(trained), "--max-new-tokens", "0"), "--max-new-tokens")
    refused(cli("generate", str(trained), "--temperature", "-1"), "--temperature")
    refused(cli("eval", str(trained), "--stride", "32"), "stride must lie in 1..31")
    refused(cli("eval", str(trained), "--prefix-only", "300"), "must lie in 1..299")


def test_only_the_first_process_complains(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert cli("show", "bnd") == (2, "", "")


def test_help_shows_examples(cli: Cli) -> None:
    for name in COMMANDS:
        code, out, _ = cli(name, "--help")
        assert code == 0
        assert f"  mapformers {name}" in out
        assert max(map(len, out.splitlines())) <= 100


def test_help_is_quick_and_does_not_import_torch() -> None:
    probe = "import sys; from mapformers.cli.main import run; run(['--help']); print('torch' in sys.modules)"
    best = 99.0
    for _ in range(3):
        then = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", probe], capture_output=True, text=True, check=True, env=os.environ
        )
        best = min(best, time.perf_counter() - then)
        assert done.stdout.rstrip().endswith("False")
    assert best < 1.0
