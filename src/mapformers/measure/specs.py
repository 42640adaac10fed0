"""The settings under which each mechanism is measured: a spec for every entry of the catalogue.

Queries see about as many keys as those of band(window=128); sizes of prototypes, features and landmarks are
those that the papers favour. What is left out here is left out nowhere: a test holds the list complete.
"""

from mapformers import spec
from mapformers.catalog import MECHANISMS
from mapformers.core.errors import require, require_known

WINDOW = 128
PER_CLUSTER = 256  # tokens that a cluster or bucket holds on average


def bench_specs(n: int) -> dict[str, str]:
    """The spec of every mechanism at n tokens, by name, in the order of the catalogue."""
    groups = max(2, n // PER_CLUSTER)
    image = "query_height=8, query_width=8, memory_height=4, memory_width=4"
    options = {
        "global_tokens": "count=8",
        "band": f"window={WINDOW}",
        "dilated": f"window={WINDOW}, dilation=2",
        "strided": "stride=64",
        "random": "count=2, block=64",
        "block_local": f"block={2 * WINDOW}",
        "longformer": f"window={WINDOW}, global_tokens=8",
        "bigbird": "block=64, random=3",
        "sparse_transformer": f"pattern=fixed, stride={WINDOW}, summary=8",
        "axial": f"axis=row, width={WINDOW}",
        "image_local": f"width=64, {image}",
        "reformer": f"buckets={groups}, window={WINDOW}, rounds=1",
        "sac": "edges=8, predictor=parallel",
        "routing": f"clusters={groups}, window={WINDOW}, query_clusters=1",
        "moba": "block=64, top=2",
        "nsa": f"block=64, top=1, window={WINDOW // 2}",
        "memory_compressed": "stride=3",
        "linformer": f"rank=256, length={max(n, 512)}",
        "nystrom": "landmarks=64",
        "csalr": "landmarks=64",
    }
    names = [entry.card.name for entry in MECHANISMS]
    return {name: f"{name}({options[name]})" if name in options else name for name in names}


def chosen(text: str) -> tuple[str, ...]:
    """What --mechanisms names: `all`, or names and specs separated by commas outside of parentheses.

    Raises MapformersError for unknown names, with the nearest ones, and for specs with several parts.
    """
    names = [entry.card.name for entry in MECHANISMS]
    if text.strip() == "all":
        return tuple(names)
    found = tuple(piece.strip() for piece in _split(text) if piece.strip())
    require(
        bool(found), f"bench: --mechanisms must name one or more, got {text!r}; write band,routing or all"
    )
    for piece in found:
        parts = spec.parse(piece)
        require(
            len(parts) == 1 and parts[0].heads is None,
            f"bench: {piece} must be one mechanism for all heads, got several parts; name them one by one",
        )
        require_known("bench", "mechanism", parts[0].name, names)
    return found


def spec_at(name: str, n: int) -> str:
    """The spec of a name at n tokens; a spec stands for itself."""
    return bench_specs(n).get(name, name)


def _split(text: str) -> list[str]:
    pieces, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += letter
    return pieces
