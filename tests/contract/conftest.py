"""Which cases run at every commit, and which in `make test` only."""

import pytest

from tests.contract import cases

# One configuration of each mechanism and one mixture at every commit; the others are variants of these.
FIRST = {texts[0] for texts in (*cases.SPECS.values(), *cases.BLOCKS.values())} | {cases.MIXTURES[0]}
VARIANTS = {*cases.ALL, *cases.ALL_BLOCKS, *cases.MIXTURES} - FIRST


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the variants slow."""
    for item in items:
        call = getattr(item, "callspec", None)
        if call is not None and any(isinstance(v, str) and v in VARIANTS for v in call.params.values()):
            item.add_marker(pytest.mark.slow)
