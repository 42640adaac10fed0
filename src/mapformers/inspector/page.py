"""The inspector's page of a text."""

from __future__ import annotations

from typing import Any

import numpy as np

from mapformers.inspector.filled import filled
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
    return filled("inspector", facts, blobs)


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
