"""The results that come with the package: what the chooser and the map know of time, memory and leaks."""

import json
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from mapformers.core.errors import MapformersError, require
from mapformers.measure.record import VERSIONS


def folder() -> Traversable:
    """Where they lie; copies of the newest files of benchmarks/results (tools/ship_results.py)."""
    return resources.files("mapformers.measure") / "results"


def shipped(name: str, kind: str, where: Traversable | None = None) -> dict[str, Any] | None:
    """A result by its name (bench, audit, audit-peers, compare-mqar, ..), None where there is none yet.

    where   another folder with such files
    Raises MapformersError for a file that is damaged or of another version.
    """
    file = (folder() if where is None else where) / f"{name}.json"
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MapformersError(
            f"results: {file} must be JSON, got {error}; install mapformers again"
        ) from None
    said = (found.get("mapformers"), found.get("version")) if isinstance(found, dict) else None
    require(
        said == (kind, VERSIONS[kind]),
        f"results: {file} must be {kind} of version {VERSIONS[kind]}, got {said}; install mapformers again",
    )
    return dict(found)
