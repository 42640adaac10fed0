"""The pages for newcomers name what exists, and quote the code as it is."""

import re

from tests.docs.blocks import ROOT, blocks
from tests.house.test_layers import ROWS

HOW = ROOT / "docs" / "how-it-fits.md"
ADD = ROOT / "docs" / "add-a-mechanism.md"
PACKAGE = ROOT / "src" / "mapformers"
QUOTED = (PACKAGE / "mechanisms" / "sparse" / "band.py", PACKAGE / "catalog.py")


def test_the_walk_through_quotes_the_code_as_it_is() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in QUOTED)
    for block in blocks(ADD, "python"):
        assert block.text in code, f"{ADD.name}, line {block.line}: the code reads otherwise now"


def test_files_that_pages_name_exist() -> None:
    for page in (HOW, ADD, ROOT / "CONTRIBUTING.md", ROOT / "README.md"):
        for named in re.findall(
            r"`((?:src|tests|docs|tools|kernels|attention|core)/[\w./-]+)`", page.read_text()
        ):
            assert (ROOT / named).exists() or (PACKAGE / named).exists(), f"{page.name} names {named}"


def test_the_list_of_folders_is_the_order_of_imports() -> None:
    section = HOW.read_text(encoding="utf-8").split("## The folders")[1].split("\n## ")[0]
    rows = [
        re.findall(r"`(\w+)(?:/|\.py)`", line.split("|")[1])
        for line in section.splitlines()
        if line[:3] == "| `"
    ]
    expected = [set(row) for row in ROWS if not row[0].startswith("__")]
    assert [set(row) for row in rows] == expected
