"""The inspector's page: one file, no network; data stand in it as base64 of little-endian arrays."""

from __future__ import annotations

import base64
import html
import json
from importlib import resources
from typing import Any

import numpy as np

from mapformers.inspector.record import LayerRecord, TextRecord

NO_CLUSTER = 65535


def page_of(record: TextRecord) -> str:
    """The whole page. Everything that came from a text or a run is escaped, or stands in base64."""
    wide = len(record.tokens) > NO_CLUSTER - 1
    facts: dict[str, Any] = {
        **record.facts,
        "tokens": len(record.tokens),
        "keep": record.layers[0].keys.shape[-1],
        "wide": wide,
        "notes": list(record.notes),
        "layers": [_facts_of(layer) for layer in record.layers],
    }
    blobs = {"tokens": record.tokens, "bits": record.bits.astype("<f4")}
    for number, layer in enumerate(record.layers):
        none = np.iinfo("<u4" if wide else "<u2").max
        keys = np.where(layer.keys < 0, none, layer.keys)
        blobs[f"keys-{number}"] = keys.astype("<u4" if wide else "<u2")
        blobs[f"weights-{number}"] = np.rint(255 * layer.weights.clip(0, 1)).astype(np.uint8)
        for name in ("clusters", "looks_in"):
            found = [getattr(head, name) for head in layer.heads if head.clusters is not None]
            if found:
                stacked = np.stack(found)
                blobs[f"{name}-{number}"] = np.where(stacked < 0, NO_CLUSTER, stacked).astype("<u2")
    data = "".join(_blob(name, values) for name, values in blobs.items())
    return (
        _asset("inspector.html")
        .replace("/*style*/", _asset("inspector.css"))
        .replace("<!--title-->", html.escape(str(record.facts.get("title", "inspector"))))
        .replace("<!--data-->", _json("facts", facts) + data)
        .replace("/*script*/", _asset("inspector.js"))
    )


def _facts_of(layer: LayerRecord) -> dict[str, Any]:
    row, heads = 0, []
    for head in layer.heads:
        has = head.clusters is not None
        heads.append(
            {
                "mechanism": head.mechanism,
                "horizon": round(head.horizon, 3),
                "entropy": round(head.entropy, 3),
                "clusters": row if has else None,  # which row of the layer's clusters
            }
        )
        row += has
    return {"name": layer.name, "heads": heads, "divergence": np.round(layer.divergence, 4).tolist()}


def _blob(name: str, values: np.ndarray) -> str:
    text = base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
    return f'<script type="application/octet-stream" id="{name}">{text}</script>\n'


def _json(name: str, value: Any) -> str:
    """JSON that no text can end: "<" and the line ends of old scripts are written as escapes."""
    text = json.dumps(value).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return f'<script type="application/json" id="{name}">{text}</script>\n'


def _asset(name: str) -> str:
    return (resources.files("mapformers.inspector") / name).read_text(encoding="utf-8")
