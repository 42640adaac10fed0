"""What is made from the catalogue is fresh."""

import runpy

from tests.docs.blocks import ROOT


def test_the_table_of_the_readme_is_fresh() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "readme_table.py"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.count(tool["BEGIN"]) == readme.count(tool["END"]) == 1
    assert tool["written"]() == readme, "the table is stale; run: make readme"


def test_the_sheet_of_patterns_can_be_drawn(tmp_path: object) -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "pictures.py"))
    tool["sheet"](tmp_path / "patterns.png")
    assert (tmp_path / "patterns.png").stat().st_size > 1000
    assert (ROOT / "docs" / "pictures" / "patterns.png").exists()
