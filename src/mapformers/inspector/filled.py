"""A page out of its template: one file, no network; data stand in it as base64 of little-endian arrays."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

import numpy as np


def filled(name: str, facts: Mapping[str, Any], blobs: Mapping[str, np.ndarray]) -> str:
    """NAME.html with style, script, facts and arrays in it; `facts["title"]` is its title.

    Everything that came from a text or a run is escaped, or stands in base64.
    """
    data = "".join(_blob(key, values) for key, values in blobs.items())
    return (
        _asset(f"{name}.html")
        .replace("/*style*/", _asset("inspector.css"))
        .replace("<!--title-->", html.escape(str(facts.get("title", "inspector"))))
        .replace("<!--data-->", _json("facts", facts) + data)
        .replace("/*script*/", _asset("shared.js") + _asset(f"{name}.js"))
    )


def _blob(name: str, values: np.ndarray) -> str:
    text = base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
    return f'<script type="application/octet-stream" id="{name}">{text}</script>\n'


def _json(name: str, value: Any) -> str:
    """JSON that no text can end: "<" and the line ends of old scripts are written as escapes."""
    text = json.dumps(value).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return f'<script type="application/json" id="{name}">{text}</script>\n'


def _asset(name: str) -> str:
    return (resources.files("mapformers.inspector") / name).read_text(encoding="utf-8")
