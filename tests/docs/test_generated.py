"""What is made from the catalogue is fresh."""

import runpy

import pytest

from tests.docs.blocks import ROOT


@pytest.mark.parametrize("name", ["readme_table.py", "readme_results.py"])
def test_the_tables_of_the_readme_are_fresh(name: str) -> None:
    tool = runpy.run_path(str(ROOT / "tools" / name))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.count(tool["BEGIN"]) == readme.count(tool["END"]) == 1
    assert tool["written"]() == readme, "the table is stale; run: make readme"


def test_the_sheet_of_patterns_can_be_drawn(tmp_path: object) -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "pictures.py"))
    tool["sheet"](tmp_path / "patterns.png")
    assert (tmp_path / "patterns.png").stat().st_size > 1000
    assert (ROOT / "docs" / "pictures" / "patterns.png").exists()
