"""Every block of the README runs as it stands; only training is made smaller."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, Block, blocks

README = ROOT / "README.md"
TARGETS = {"make"}  # blocks of make targets: checked, not run

# What makes a training run small enough for a test. The commands of the README stay as they are otherwise.
SHORT = ["data.batch=2", "training.max_steps=3", "training.eval_every=3", "training.save_every=2"]
NARROW = ["model.hidden_size=16", "model.num_attention_heads=2", "model.intermediate_size=32"]
FEW = ["data.train_examples=40", "data.valid_examples=4", "data.test_examples=4"]
LAYERS = "model.layers=[{attention: band(window=8)}, {attention: routing(clusters=2):1 + band(window=8):1}]"
SMALL = {
    "image-classification": ["model.latents=4", "model.latent_size=16"],
    "text-classification": NARROW,
    "translation": ["model.hidden_size=16", *FEW],
    "forecast": NARROW,
}
LANGUAGE = [*NARROW, LAYERS, "data.context=64"]  # of all other presets


def commands(block: Block) -> list[list[str]]:
    """The lines of a block as words, comments left out."""
    return [words for line in block.text.splitlines() if (words := shlex.split(line, comments=True))]


def shrunk(words: list[str]) -> list[str]:
    """The command with settings that make its training small; a resumed run keeps those it has."""
    if words[0] != "train" or "--resume" in words:
        return words
    small = [*SHORT, *SMALL.get(words[1], LANGUAGE)]
    settings = [word for setting in small for word in ("--set", setting)]
    if "--max-steps" in words:
        place = words.index("--max-steps")
        words = words[:place] + words[place + 2 :]
    return words + settings


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two texts that the README speaks of, where its commands run one after the other."""
    folder = tmp_path_factory.mktemp("desk")
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (folder / "book.txt").write_text(text * 4, encoding="utf-8")
    (folder / "letter.txt").write_text(text[:700], encoding="utf-8")
    for label, word in (("good", "fine"), ("bad", "awful")):
        (folder / "reviews" / label).mkdir(parents=True)
        for i in range(12):
            (folder / "reviews" / label / f"{i}.txt").write_text(f"{word} " * (i + 1), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_the_commands_run(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mapformers.cli.main import run

    monkeypatch.chdir(desk)
    ran = 0
    for block in blocks(README, "bash"):
        for program, *words in commands(block):
            if program == "mapformers":
                code = run(shrunk(words))
                said = capsys.readouterr()
                assert code == 0, f"{block}: mapformers {shlex.join(words)} left {code}\n{said.err}"
                assert said.out.strip(), f"{block}: mapformers {shlex.join(words)} printed nothing"
                ran += 1
    assert ran == len(re.findall(r"^mapformers ", README.read_text(encoding="utf-8"), re.MULTILINE)) > 0
    assert (desk / "runs" / "book" / "report.html").exists()
    assert (desk / "pattern.png").exists()


@pytest.mark.parametrize("block", blocks(README, "python"), ids=str)
def test_the_python_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = "\n" * (block.line - 1) + block.text  # so that an error names the line of the README
    exec(compile(source, str(README), "exec"), {"__name__": "readme"})


def test_nothing_but_make_mapformers_and_python_stands_in_blocks() -> None:
    programs = {words[0] for block in blocks(README, "bash") for words in commands(block)}
    assert programs <= {"mapformers", "make"}
    languages = set(re.findall(r"^```(\w+)$", README.read_text(encoding="utf-8"), re.MULTILINE))
    assert languages == {"bash", "python"}


def test_the_make_targets_exist() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"^make (\w+)", listed, re.MULTILINE))
    named = set(re.findall(r"\bmake (\w+)", README.read_text(encoding="utf-8")))
    assert named <= known, f"make targets that do not exist: {named - known}"


def test_links_lead_somewhere() -> None:
    pages = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"
