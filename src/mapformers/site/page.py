"""The map as a folder of static files: one page with everything in it, which opens from disk."""

import json
import os
import shutil
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

from mapformers.core.errors import MapformersError, require
from mapformers.site.data import map_data

PAGE = "index.html"
MARK = "<title>The map of efficient attention</title>"  # by which an older map is known


def map_page(data: dict[str, Any]) -> str:
    """The page. Data stand in it as JSON that no text can end: "<" is written as an escape."""
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return (
        _asset("map.html")
        .replace("/*style*/", _asset("map.css"))
        .replace("<!--data-->", text)
        .replace("/*script*/", _asset("map.js"))
    )


def write_map(folder: Path) -> Path:
    """Write the map into a folder, whole or not at all; an older map there is replaced.

    Raises MapformersError for a folder that holds something else, and where nothing can be written.
    """
    if folder.exists():
        found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else ["a file"]
        ours = found == [PAGE] and MARK in (folder / PAGE).read_text(encoding="utf-8", errors="replace")
        require(
            not found or ours,
            f"map: --output {folder} must be new or hold a map, got {', '.join(found[:3])}; choose another",
        )
    page = map_page(map_data())
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            draft.chmod(0o755)
            (draft / PAGE).write_text(page, encoding="utf-8")
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise MapformersError(
            f"map: --output {folder} must be writable, got {error.strerror or error}; choose another folder"
        ) from None
    return folder / PAGE


def _asset(name: str) -> str:
    return (resources.files("mapformers.site") / name).read_text(encoding="utf-8")
