"""The inspector's page of a picture in a browser: latents and pixels, by mouse, keyboard and link."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapformers.inspector.example import Example
from mapformers.inspector.picture import PictureRecord, ReadRecord, picture_page
from mapformers.inspector.record import HeadRecord, LayerRecord
from tests.browser.conftest import OpenPage, scrolls_sideways, serious

pytestmark = pytest.mark.slow
FACTS = {"title": "digits: <b>example</b>", "about": "a run", "label": "</script><i>7"}
LINES, COLUMNS, LATENTS, KEEP = 6, 8, 5, 4


def image(generated: bool = False) -> Example:
    count = LINES * COLUMNS
    pixels = np.arange(count * 3, dtype=np.uint8).reshape(LINES, COLUMNS, 3)
    cell = np.concatenate([[-1], np.arange(count)]) if generated else np.arange(count)
    return Example({}, (LINES, COLUMNS), cell, pixels, None, "example 3", None if generated else 7)


@pytest.fixture(scope="module")
def reads() -> PictureRecord:
    draw = np.random.Generator(np.random.PCG64(0))
    weights = draw.random((2, LATENTS, LINES * COLUMNS))
    weights /= weights.sum(-1, keepdims=True)
    made = [
        ReadRecord(f"read {i} of 2", weights[::step], LATENTS, np.ones(2)) for i, step in ((1, 1), (2, -1))
    ]
    return PictureRecord(image(), tuple(made), (), (("</script><i>7", 0.9), ("1", 0.1)), FACTS)


@pytest.fixture(scope="module")
def layers() -> PictureRecord:
    n = LINES * COLUMNS + 1
    keys = np.arange(n)[None, :, None] - np.arange(KEEP) * np.array([1, COLUMNS])[:, None, None]
    keys = np.where(keys < 0, -1, keys)
    weights = np.where(keys >= 0, np.array([0.4, 0.3, 0.2, 0.1]), 0.0)
    heads = tuple(HeadRecord(name, 1.0, 2.0, None, None) for name in ("band", "strided"))
    layer = LayerRecord("layer", keys, weights, np.zeros((2, 2)), heads)
    return PictureRecord(image(generated=True), (), (layer,), (), {**FACTS, "label": ""}, ("A note.",))


def opened(record: PictureRecord, tmp_path: Path, open_page: OpenPage, **how: Any) -> Any:
    path = tmp_path / "page.html"
    path.write_text(picture_page(record), encoding="utf-8")
    return open_page(path, **how)


def click(page: Any, line: int, column: int) -> None:
    box = page.locator("#picture").bounding_box()
    at = {"x": (column + 0.5) * box["width"] / COLUMNS, "y": (line + 0.5) * box["height"] / LINES}
    page.locator("#picture").click(position=at)


def test_a_latent_and_a_pixel(reads: PictureRecord, tmp_path: Path, open_page: OpenPage) -> None:
    page = opened(reads, tmp_path, open_page)
    assert page.locator("h1").inner_text() == FACTS["title"]
    assert page.locator("#answer i").count() == 0
    assert "Its class is </script><i>7." in page.locator("#answer").inner_text()
    assert page.locator("#gallery button").count() == LATENTS
    page.locator("#gallery button").nth(3).click()
    assert page.locator("#latent").input_value() == "3"
    best = int(reads.reads[0].weights[:, 3].mean(0).argmax())
    where = f"line {best // COLUMNS}, column {best % COLUMNS}"
    assert where in page.locator("#seen li").first.inner_text()
    click(page, 2, 5)
    cell = 2 * COLUMNS + 5
    ranked = reads.reads[0].weights[..., cell].mean(0).argsort()[::-1]
    assert f"latent {ranked[0]}" in page.locator("#seen li").first.inner_text()
    share = 100 * reads.reads[0].weights[:, 3, cell].mean()
    said = page.locator("#selected").inner_text()
    assert "Cell: line 2, column 5" in said
    assert abs(float(said.split("weight ")[1].split(" %")[0]) - share) < 0.1
    page.locator("#seen button").first.click()
    assert page.locator("#latent").input_value() == str(ranked[0])


def test_whom_a_pixel_sees(layers: PictureRecord, tmp_path: Path, open_page: OpenPage) -> None:
    page = opened(layers, tmp_path, open_page)
    page.select_option("#head", "0")
    click(page, 3, 4)
    rows = page.locator("#seen li")
    assert rows.count() == KEEP
    assert "40.0 %" in rows.first.inner_text()
    assert "line 3, column 4" in rows.first.inner_text()
    assert "line 3, column 3" in rows.nth(1).inner_text()
    page.select_option("#head", "1")
    assert "line 2, column 4" in rows.nth(1).inner_text()
    page.select_option("#direction", "in")
    assert "line 4, column 4" in rows.nth(1).inner_text()
    assert page.locator("#gallery button").count() == 2
    assert "A note." in page.locator("#notes").inner_text()


def test_keys_and_links(reads: PictureRecord, tmp_path: Path, open_page: OpenPage) -> None:
    page = opened(reads, tmp_path, open_page)
    page.locator("#picture").focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowRight", "+", "+", "]"):
        page.keyboard.press(key)
    assert page.locator("#layer").input_value() == "1"
    assert page.locator("#latent").input_value() == "1"
    assert "line 1, column 1" in page.locator("#selected").inner_text()
    link = page.evaluate("location.hash")
    page.keyboard.press("Escape")
    assert page.locator("#latent").input_value() == "-1"
    again = opened(reads, tmp_path, open_page)
    again.goto(again.url.partition("#")[0] + link)
    again.reload()
    assert again.locator("#latent").input_value() == "1"
    assert "line 1, column 1" in again.locator("#selected").inner_text()


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_it_is_accessible_and_fits(
    reads: PictureRecord, layers: PictureRecord, tmp_path: Path, open_page: OpenPage, width: int, dark: bool
) -> None:
    for record in (reads, layers):
        page = opened(record, tmp_path, open_page, width=width, dark=dark)
        click(page, 1, 1)
        assert serious(page) == []
        assert not scrolls_sideways(page)
