"""Result files: dated JSON with command and machine, whole or not at all; another version is refused.

A file says what it is in its first two fields: {"mapformers": "bench", "version": 1, ...}.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mapformers.core.errors import MapformersError, require
from mapformers.measure.facts import machine
from mapformers.tasks.corpus import write_text

VERSIONS = {"audit": 1, "bench": 1, "compare": 1}  # raised when a reader of the old form would misread it


def write_record(path: Path, kind: str, command: str, body: dict[str, Any]) -> None:
    """Write a result: what it is, its date, the command, the machine, then the body.

    Raises MapformersError where the file cannot be written.
    """
    head = {"mapformers": kind, "version": VERSIONS[kind], "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    whole = {**head, "command": command, "machine": machine(), **body}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(whole, indent=1) + "\n")
    except OSError as error:
        raise MapformersError(
            f"results: {path} must be writable, got {error.strerror or error}; choose another file"
        ) from None


def read_record(path: Path, kind: str) -> dict[str, Any]:
    """A result file of that kind and of this version.

    Raises MapformersError for a file that is missing, damaged, of another kind or of another version.
    """
    again = f"make it again with: mapformers {kind} --json {path}"
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MapformersError(
            f"results: {path} must be readable, got {error.strerror or error}; {again}"
        ) from None
    except ValueError as error:
        raise MapformersError(f"results: {path} must be JSON, got {error}; {again}") from None
    found = whole.get("mapformers") if isinstance(whole, dict) else None
    require(found == kind, f"results: {path} must hold results of {kind}, got {found or 'others'}; {again}")
    version, own = whole.get("version"), VERSIONS[kind]
    require(
        version == own,
        f"results: {path} must be of version {own}, got {version}; {again}",
    )
    return dict(whole)
