"""The page, the plots and the pictures: self-contained, escaped, and drawn from what was recorded."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from mapformers.core.errors import MapformersError
from mapformers.report.page import write_report
from mapformers.report.pattern import save_picture, text_picture
from mapformers.report.plots import line_chart, ticks
from mapformers.report.results import read_run
from mapformers.train.folder import config_text
from mapformers.train.presets import load_preset

EVIL = "<script>alert('x')</script>&"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder as a run leaves it, with text that wants to be markup."""
    (tmp_path / "data").mkdir()
    (tmp_path / "config.yaml").write_text(config_text(load_preset("routing-enwik8")))
    telemetry = [
        {},
        {"occupancy_entropy": 0.9, "dead_clusters": 0.5, "mean_horizon": 30.0, "centroid_drift": 0.01},
    ]
    lines = []
    for step in (1, 2, 3):
        lines.append(
            {
                "step": step,
                "loss": 3 / step,
                "bits_per_byte": 4 / step,
                "losses": {"commitment": 0.3},
                "learning_rate": 0.1,
                "tokens_per_second": 1e4,
            }
        )
        sample = {"prompt": EVIL, "text": EVIL}
        lines.append(
            {"step": step, "valid_bits_per_byte": 4 / step, "telemetry": telemetry, "sample": sample}
        )
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "lo'
    (tmp_path / "metrics.jsonl").write_text(text)
    prefix = {
        "prefix_only": 1.5,
        "teacher_forced": 1.5,
        "difference": 0.0,
        "positions": 9,
        "method": "cache",
        "agrees": True,
    }
    results = {
        "step": 3,
        "parameters": 1234,
        "test": {"bits_per_byte": 1.5, "bytes": 99, "context": 8, "stride": 4},
        "prefix": prefix,
        "baselines": {"unigram": 4.5, "ngram": 2.5, "xz": 2.0},
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    facts = {
        "source": EVIL,
        "rule": "by hash",
        "files": 3,
        "bytes": 12,
        "sha256": "ab" * 32,
        "python": "3.11",
        "splits": {"train": {"bytes": 10}},
    }
    (tmp_path / "data" / "facts.json").write_text(json.dumps(facts))
    return tmp_path


class Tags(HTMLParser):
    """Collects tags, and checks that they are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_network(folder: Path) -> None:
    page = write_report(folder).read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.links == []
    assert "script" not in tags.seen
    assert "http" not in page
    assert tags.seen.count("svg") == 8
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_the_page_says_what_was_found(folder: Path) -> None:
    page = write_report(folder).read_text()
    shown = (
        "1.500",
        "4.500",
        "2.500",
        "2.000",
        "1,234",
        "they agree",
        "Mean horizon",
        "Occupancy entropy",
        "Dead clusters",
        "Centroid drift",
        "commitment",
        "strictly causal",
        "99 bytes",
        "ab" * 32,
    )
    for text in shown:
        assert text.lower() in page.lower(), text
    assert "&lt;script&gt;" in page


def test_a_run_that_has_just_begun_has_a_page(folder: Path) -> None:
    for name in ("metrics.jsonl", "results.json", "data/facts.json"):
        (folder / name).unlink()
    assert "has not been scored yet" in write_report(folder).read_text()


def test_disagreement_is_shouted(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    results["prefix"] |= {"agrees": False, "method": "prefixes"}
    (folder / "results.json").write_text(json.dumps(results))
    assert "do NOT agree" in write_report(folder).read_text()


def test_record_skips_lines_that_were_cut_off(folder: Path) -> None:
    run = read_run(folder)
    assert run.curve("loss") == [(1, 3.0), (2, 1.5), (3, 1.0)]
    assert run.curve("losses.commitment") == [(1, 0.3), (2, 0.3), (3, 0.3)]
    assert run.telemetry("dead_clusters") == {"layer 2": [(1, 0.5), (2, 0.5), (3, 0.5)]}


def test_a_chart_places_its_points_inside_the_frame() -> None:
    svg = line_chart(
        {"a": [(0, 1.0), (10, 2.0)], "b": [(0, math.nan), (10, 1.5)]}, "step", "bits", {"xz": 1.2}
    )
    drawing = svg[: svg.index("</svg>") + 6]
    root = ElementTree.fromstring(drawing)
    line = root.find("polyline")
    assert line is not None
    (x0, y0), (x1, y1) = (tuple(map(float, point.split(","))) for point in line.attrib["points"].split())
    assert x0 < x1
    assert y0 > y1
    assert min(x0, x1, y0, y1) >= 0
    assert max(x0, x1) <= 440
    assert max(y0, y1) <= 250
    assert root.find("circle") is not None
    assert re.search(r"<li>.*a</li><li>.*b</li>", svg)


def test_a_chart_of_nothing_is_nothing() -> None:
    assert line_chart({"a": []}, "x", "y") == ""
    assert line_chart({"a": [(0, math.inf)]}, "x", "y") == ""


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.001, 0.0023), (-5, 5), (3, 3), (0, 0), (1e-9, 1e9)])
def test_ticks_span_the_values(low: float, high: float) -> None:
    marks = ticks(low, high)
    assert marks[0] <= low
    assert marks[-1] >= high
    assert 2 <= len(marks) <= 8


def test_text_picture() -> None:
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.01, 0.0, 0.99]])
    assert text_picture(weights) == "██· ·\n████·\n░░· ██"
    assert text_picture(torch.eye(2, dtype=torch.bool)) == "██·\n· ██"
    assert text_picture(torch.zeros(1, 2)) == "· ·"


@pytest.mark.slow
def test_pictures_as_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures as files need matplotlib")
    for name, start in (("a.svg", b"<?xml"), ("a.png", b"\x89PNG")):
        save_picture(torch.eye(4), tmp_path / name, "eye")
        assert (tmp_path / name).read_bytes().startswith(start)
    for bad, rule in ((tmp_path / "a.gif", "must end in"), (tmp_path / "no" / "a.svg", "existing folder")):
        with pytest.raises(MapformersError, match=rule):
            save_picture(torch.eye(4), bad)
    with pytest.raises(MapformersError, match=r"must be \[N, M\]"):
        text_picture(torch.zeros(1, 2, 3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg"]
