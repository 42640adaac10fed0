"""The core does not pull in transformers; importing the hub registers the classes, any number of times."""

import importlib
import subprocess
import sys

import pytest

import mapformers.hub
import mapformers.models


@pytest.mark.slow
def test_transformers_is_imported_only_when_needed() -> None:
    code = (
        "import sys, mapformers, mapformers.models; assert 'transformers' not in sys.modules; "
        "mapformers.models.MapformerConfig; assert 'transformers' in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


def test_names() -> None:
    for name in mapformers.models.__all__:
        assert getattr(mapformers.models, name).__name__ == name
    assert dir(mapformers.models) == sorted(mapformers.models.__all__)
    with pytest.raises(AttributeError, match="MapformerFor"):
        mapformers.models.MapformerForNothing  # noqa: B018


def test_registering_twice_is_harmless() -> None:
    importlib.reload(mapformers.hub)
