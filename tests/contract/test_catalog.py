"""Nothing of the catalogue escapes the suite."""

from mapformers import spec
from mapformers.catalog import BLOCKS, MECHANISMS, catalog
from tests.contract import cases


def names(entries: tuple[type, ...]) -> set[str]:
    return {entry.card.name for entry in entries}  # type: ignore[attr-defined]


def test_every_mechanism_has_configurations() -> None:
    assert set(cases.SPECS) == names(MECHANISMS)
    for name, texts in cases.SPECS.items():
        assert texts
        assert all(spec.parse(text)[0].name == name for text in texts)


def test_every_block_has_configurations() -> None:
    assert set(cases.BLOCKS) == names(BLOCKS)


def test_every_mechanism_has_a_rule_for_its_cost() -> None:
    assert set(cases.COSTS) == names(MECHANISMS)


def test_every_option_has_a_change_to_try() -> None:
    for card in catalog():
        assert set(cases.CHANGES[card.name]) == {option.name for option in card.options}, card.name


def test_every_configuration_runs_in_some_direction() -> None:
    for text in cases.ALL:
        assert cases.directions_of(text), text


def test_strict_cards_claim_causal_and_refusing_ones_do_not() -> None:
    for entry in MECHANISMS + BLOCKS:
        card = entry.card  # type: ignore[attr-defined]
        assert (card.causal == "strict") == ("causal" in card.supports), card.name
