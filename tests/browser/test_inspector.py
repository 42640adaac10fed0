"""The inspector's page in a browser: what a reader does with mouse, keyboard and links, on any text."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapformers.inspector.page import page_of
from mapformers.inspector.record import HeadRecord, LayerRecord, TextRecord, record_text
from tests.browser.conftest import OpenPage, scrolls_sideways, serious
from tests.inspector.test_inspect import NASTY, quiet, tiny_model

pytestmark = pytest.mark.slow
FACTS = {"title": "demo: <b>nasty</b>.txt", "about": "a run"}


@pytest.fixture(scope="module")
def record() -> TextRecord:
    return record_text(tiny_model(), NASTY, 6, FACTS, quiet)


@pytest.fixture
def page_file(record: TextRecord, tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    path.write_text(page_of(record), encoding="utf-8")
    return path


def token(page: Any, unit: int) -> Any:
    return page.locator(f'.token[data-unit="{unit}"]')


def test_any_text_is_shown_and_nothing_of_it_runs(page_file: Path, open_page: OpenPage) -> None:
    page = open_page(page_file)
    assert page.evaluate("window.hacked") is None
    assert page.locator("h1").inner_text() == FACTS["title"]
    shown = page.locator("#lines").inner_text()
    for piece in ("<script>", "</script>", "שלום", "🙂", "␀", "␇", "\u2039FF\u203a", "\u2039U+202E\u203a"):
        assert piece.replace("\n", "") in shown.replace("\n", ""), piece
    assert page.locator("#lines img, #lines script").count() == 0


def test_a_click_shows_whom_it_sees_and_its_cluster(
    page_file: Path, open_page: OpenPage, record: TextRecord
) -> None:
    page = open_page(page_file)
    token(page, 40).click()
    head = record.layers[1].heads[0]
    assert head.clusters is not None
    assert head.looks_in is not None
    panel = page.locator("#selected").inner_text()
    assert "token 40" in panel
    assert f"in cluster {head.clusters[40]} · looks into cluster {head.looks_in[40]}" in panel
    count = int((head.clusters == head.looks_in[40]).sum()) - int(head.clusters[40] == head.looks_in[40])
    mates = page.locator("#mates").inner_text()
    assert f"In cluster {head.looks_in[40]}, where it looks: {count} others" in mates
    page.select_option("#layer", "0")
    page.select_option("#head", "0")
    rows = page.locator("#seen button")
    own = record.layers[0]
    assert rows.count() == int((own.keys[0, 40] >= 0).sum())
    assert (
        rows.first.locator(".share").inner_text() == f"{100 * round(255 * own.weights[0, 40, 0]) / 255:.1f} %"
    )
    assert page.locator(".token.seen").count() == rows.count()
    rows.first.click()
    assert f"token {own.keys[0, 40, 0]}" in page.locator("#selected").inner_text()
    page.select_option("#direction", "in")
    count = int((own.keys[0] == own.keys[0, 40, 0]).any(-1).sum())
    assert page.locator("#seen button").count() == min(24, count)


def test_keys_links_and_search(page_file: Path, open_page: OpenPage) -> None:
    page = open_page(page_file)
    page.locator("#text").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert "token 4" in page.locator("#selected").inner_text()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("d")
    assert page.locator("#direction").input_value() == "in"
    page.keyboard.press("[")
    assert page.locator("#layer").input_value() == "0"
    page.keyboard.press("/")
    page.keyboard.type("quotes")
    page.keyboard.press("Enter")
    assert page.locator("#found").inner_text() == "1 found"
    at = NASTY.index(b"quotes")
    assert f"token {at}" in page.locator("#selected").inner_text()
    token(page, at + 3).click(modifiers=["Shift"])
    assert "2 tokens" in page.locator("#selected").inner_text()
    link = page.evaluate("location.hash")
    again = open_page(page_file)
    again.goto(page_file.resolve().as_uri() + link)
    again.reload()
    assert "2 tokens" in again.locator("#selected").inner_text()
    assert again.locator("#direction").input_value() == "in"


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_it_is_accessible_and_fits(page_file: Path, open_page: OpenPage, width: int, dark: bool) -> None:
    page = open_page(page_file, width=width, dark=dark)
    token(page, 12).click()
    assert serious(page) == []
    assert not scrolls_sideways(page)


def test_long_texts_stay_quick(tmp_path: Path, open_page: OpenPage) -> None:
    n, keep = 65_000, 8
    draw = np.random.Generator(np.random.PCG64(0))
    keys = np.maximum(0, np.arange(n)[None, :, None] - draw.integers(0, 500, (2, n, keep)))
    clusters = draw.integers(0, 16, n).astype(np.int32)
    heads = tuple(HeadRecord("routing", 200.0, 3.0, clusters, clusters) for _ in range(2))
    layer = LayerRecord("layer", keys, np.full(keys.shape, 1 / keep), np.zeros((2, 2)), heads)
    tokens = draw.integers(97, 123, n).astype(np.uint8)
    tokens[::60] = 10
    facts = {"title": "long", "about": ""}
    path = tmp_path / "long.html"
    path.write_text(page_of(TextRecord(tokens, np.ones(n, np.float32), (layer,), facts)), encoding="utf-8")
    page = open_page(path)
    took = page.evaluate(
        """() => {
            const box = document.getElementById("text"), times = [];
            for (const share of [0.3, 0.6, 0.9]) {
                box.scrollTop = share * box.scrollHeight;
                box.dispatchEvent(new Event("scroll"));
            }
            return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {
                for (let i = 0; i < 3; i++) {
                    const token = document.querySelectorAll(".token")[40 + i], start = performance.now();
                    token.click();
                    times.push(performance.now() - start);
                }
                done(Math.min(...times));
            })));
        }"""
    )
    assert took < 200
    assert page.locator(".token").count() < 6000
