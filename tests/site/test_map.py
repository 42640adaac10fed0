"""The map as data and as files: nothing is left out, nothing is made up, nothing overlaps."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mapformers.catalog import catalog
from mapformers.cli.main import run
from mapformers.measure.choose import Question, choose
from mapformers.measure.record import write_record
from mapformers.measure.shipped import shipped
from mapformers.site.data import formula_parts, map_data
from mapformers.site.layout import CELL, LINE, layout
from mapformers.site.lineage import DERIVES
from mapformers.site.page import map_page


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return map_data()


def test_every_card_has_a_place_in_the_region_of_its_family() -> None:
    plan = layout(catalog())
    assert [place.name for place in plan.places] != []
    assert {place.name for place in plan.places} == {card.name for card in catalog()}
    regions = {region.name: region for region in plan.regions}
    for place in plan.places:
        home = regions[place.region]
        assert home.x < place.x < home.x + home.width
        assert home.y < place.y < home.y + home.height
    for a in plan.regions:
        for b in plan.regions:
            apart = a.x + a.width <= b.x or b.x + b.width <= a.x
            apart = apart or a.y + a.height <= b.y or b.y + b.height <= a.y
            assert a is b or apart, (a.name, b.name)


def test_places_keep_their_distance() -> None:
    places = layout(catalog()).places
    for i, a in enumerate(places):
        for b in places[:i]:
            assert abs(a.x - b.x) >= CELL - 1 or abs(a.y - b.y) >= LINE - 1, (a.name, b.name)


def test_lines_join_what_exists_and_nothing_derives_from_itself() -> None:
    names = {card.name for card in catalog()}
    parents: dict[str, set[str]] = {}
    for child, parent, why in DERIVES:
        assert {child, parent} <= names
        assert why
        parents.setdefault(child, set()).add(parent)

    def ancestors(name: str) -> set[str]:
        found = set(parents.get(name, ()))
        return found.union(*(ancestors(one) for one in found)) if found else found

    for name in names:
        assert name not in ancestors(name)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("w[i,j] = q_i.k_j", [("plain", "w[i,j] = q"), ("sub", "i"), ("plain", ".k"), ("sub", "j")]),
        ("2^(-8(h+1)/H) |i-j|", None),
        ("x^2 <= D^(1/4)", [("plain", "x"), ("sup", "2"), ("plain", " \u2264 D"), ("sup", "1/4")]),
        ("argmax x^.mu", [("plain", "argmax x\u0302.\u03bc")]),
        ("the last `window` keys", [("plain", "the last "), ("i", "window"), ("plain", " keys")]),
        ("plain words", [("plain", "plain words")]),
    ],
)
def test_formulas(text: str, parts: list[tuple[str, str]] | None) -> None:
    made = [(kind, piece) for kind, piece in formula_parts(text) if piece]
    if parts is None:
        assert "".join(piece for _, piece in made).replace("(", "").startswith("2")
    else:
        merged = [made[0]]
        for kind, piece in made[1:]:
            if kind == merged[-1][0] == "plain":
                merged[-1] = (kind, merged[-1][1] + piece)
            else:
                merged.append((kind, piece))
        assert merged == parts


def test_numbers_come_from_results(data: dict[str, Any]) -> None:
    bench = shipped("bench", "bench")
    assert bench is not None
    places = {one["name"]: one for one in data["places"]}
    row = bench["points"]["routing"]["16384"]
    assert places["routing"]["faster"] == pytest.approx(row["core"]["times_faster"])
    assert places["routing"]["curve"][-1]["ms"] == pytest.approx(1000 * row["core"]["min"])
    assert places["alibi"]["curve"] == []
    assert places["routing"]["peers"][0]["package"] == "routing_transformer"
    assert data["sources"]["bench"]["command"] == bench["command"]


def test_without_results_nothing_is_made_up(tmp_path: Path) -> None:
    bare = map_data(tmp_path)
    assert set(bare["sources"].values()) == {None}
    for one in bare["places"]:
        assert one["faster"] is one["memory"] is one["recall"] is one["audit"] is None
        assert one["curve"] == one["peers"] == []
    write_record(tmp_path / "audit.json", "audit", "x", {"subjects": []})
    assert map_data(tmp_path)["sources"]["audit"]["command"] == "x"


def test_the_chooser_of_the_page_is_that_of_the_command(data: dict[str, Any]) -> None:
    bench, recall = shipped("bench", "bench"), shipped("compare-mqar", "compare")
    for key, question in (
        ("65536 decode 0 language", Question(65536, causal=True, decode=True, task="language")),
        ("4096 any 1 any", Question(4096, pretrained=True)),
        ("1024 cross 0 translation", Question(1024, cross=True, task="translation")),
    ):
        fit = [one for one in choose(question, bench, recall) if not one.left_out]
        assert [answer[0] for answer in data["choices"][key]] == [one.spec for one in fit[:6]]


def test_the_page_is_whole_and_asks_for_nothing(data: dict[str, Any]) -> None:
    page = map_page({**data, "note": "</script><b>"})
    assert "</script><b>" not in page
    assert page.count("<script") == 2
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert json.loads(re.search(r'id="data">([^<]*)</script>', page)[1])["width"] == data["width"]  # type: ignore[index]


def test_the_command_replaces_a_map_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "site"
    assert run(["map", "--output", str(folder)]) == 0
    assert run(["map", "--output", str(folder)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
    assert "index.html" in capsys.readouterr().out
    (folder / "letter.txt").write_text("mine")
    assert run(["map", "--output", str(folder)]) == 2
    shown = capsys.readouterr().err
    assert "must be new or hold a map, got index.html, letter.txt" in shown
    assert shown.count("\n") == 1
    assert (folder / "letter.txt").read_text() == "mine"
