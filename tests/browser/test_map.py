"""The map in a browser: from disk, by mouse and by keyboard alone."""

from pathlib import Path
from typing import Any

import pytest

from mapformers.measure.choose import Question, choose
from mapformers.measure.shipped import shipped
from mapformers.site.data import map_data
from mapformers.site.page import map_page
from tests.browser.conftest import OpenPage, scrolls_sideways, serious

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("site") / "index.html"
    path.write_text(map_page(map_data()), encoding="utf-8")
    return path


def card(page: Any) -> str:
    return str(page.locator("#card").inner_text())


def test_a_place_opens_its_card(page_file: Path, open_page: OpenPage) -> None:
    page = open_page(page_file)
    page.locator('.place[data-name="routing"]').click()
    shown = card(page)
    for words in (
        "routing",
        "Formula",
        "All checks of the audit pass.",
        "routing_transformer",
        "clusters",
        "Roy et al.",
    ):
        assert words in shown
    assert page.locator("#card .chart").count() == 1
    page.locator("#card .chips button", has_text="reformer").click()
    assert page.locator("#card h2").inner_text() == "reformer"
    assert "place=reformer" in page.evaluate("location.hash")
    page.reload()
    assert page.locator("#card h2").inner_text() == "reformer"


def test_search_compare_and_choose_by_keyboard_alone(page_file: Path, open_page: OpenPage) -> None:
    page = open_page(page_file)
    page.keyboard.press("/")
    page.keyboard.type("nystr")
    assert page.locator("#found").inner_text() == "1 found"
    page.keyboard.press("Enter")
    assert page.locator("#card h2").inner_text() == "nystrom"
    page.keyboard.press("Tab")  # from the card to its first button
    page.keyboard.press("Enter")
    page.locator('.place[data-name="band"]').focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("#tab-compare").focus()
    page.keyboard.press("Enter")
    heads = page.locator('#table th[scope="col"]').all_inner_texts()
    assert heads == ["nystrom", "band"]
    page.locator("#tab-choose").focus()
    page.keyboard.press("Enter")
    page.select_option("#q-length", "65536")
    page.select_option("#q-use", "decode")
    asked = choose(
        Question(65536, causal=True, decode=True),
        shipped("bench", "bench"),
        shipped("compare-mqar", "compare"),
    )
    fit = [one.spec for one in asked if not one.left_out][:6]
    assert page.locator("#answers .spec").all_inner_texts() == fit


def test_labels_do_not_cover_each_other(page_file: Path, open_page: OpenPage) -> None:
    page = open_page(page_file)
    page.select_option("#measure", "faster")
    boxes = page.evaluate(
        """() => [...document.querySelectorAll("#map .place text, #map .title")]
            .filter((e) => e.textContent)
            .map((e) => [e.textContent, e.getBBox()])
            .map(([text, b]) => [text, b.x, b.y, b.x + b.width, b.y + b.height])"""
    )
    assert len(boxes) > 65
    for i, (name, left, top, right, bottom) in enumerate(boxes):
        for other, x0, y0, x1, y1 in boxes[:i]:
            apart = right <= x0 or x1 <= left or bottom <= y0 + 3 or y1 <= top + 3
            assert apart, (name, other)
    dots = page.evaluate(
        """() => [...document.querySelectorAll("#map .place .dot")]
            .map((e) => [Number(e.getAttribute("cx")), Number(e.getAttribute("cy"))])"""
    )
    for name, left, top, right, bottom in boxes:
        for x, y in dots:
            assert not (left + 2 < x < right - 2 and top + 2 < y < bottom - 2), name


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
@pytest.mark.parametrize("link", ["#place=performer", "#view=compare&compare=routing,linear", "#view=choose"])
def test_it_is_accessible_and_fits(
    page_file: Path, open_page: OpenPage, width: int, dark: bool, link: str
) -> None:
    page = open_page(page_file, width=width, dark=dark)
    page.goto(page_file.resolve().as_uri() + link)
    page.reload()
    assert serious(page) == []
    assert not scrolls_sideways(page)
