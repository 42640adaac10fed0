"""What is made from the catalogue is fresh."""

import runpy
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT


def test_the_table_of_the_catalogue_is_fresh() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "readme_table.py"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.count(tool["BEGIN"]) == readme.count(tool["END"]) == 1
    assert tool["written"]() == readme, "the table is stale; run: make readme"


@pytest.mark.parametrize("name", ["README.md", "docs/results.md"])
def test_the_tables_of_results_are_fresh(name: str) -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "readme_results.py"))
    page = (ROOT / name).read_text(encoding="utf-8")
    assert page.count(tool["BEGIN"]) == page.count(tool["END"]) == 1
    assert tool["written"](ROOT / name) == page, "the tables are stale; run: make readme"


@pytest.mark.slow
def test_the_table_of_combinations_is_fresh() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "combinations.py"))
    page = (ROOT / "docs" / "combinations.md").read_text(encoding="utf-8")
    assert tool["written"]() == page, "the table is stale; run: make readme"


@pytest.mark.slow
def test_every_table_of_results_is_a_picture_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    tool = runpy.run_path(str(ROOT / "tools" / "table_pictures.py"))
    drawn = tool["draw_all"](tmp_path, (".svg",))
    held = {path.name for path in (ROOT / "docs" / "pictures" / "results").glob("*.svg")}
    assert {path.name for path in tmp_path.iterdir()} == held, "pictures are missing; run: make pictures"
    assert len(drawn) == len(held) > 20


@pytest.mark.slow
def test_the_sheet_of_patterns_can_be_drawn(tmp_path: object) -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "pictures.py"))
    tool["sheet"](tmp_path / "patterns.png")
    assert (tmp_path / "patterns.png").stat().st_size > 1000
    assert (ROOT / "docs" / "pictures" / "patterns.png").exists()
