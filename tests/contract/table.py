"""What the contract suite runs: the small configurations of every entry, and what its options change.

Every list is checked against the catalogue (test_catalog.py): a new mechanism, block or option without a line
here fails the suite.
"""

from typing import Any, Literal

SPECS: dict[str, tuple[str, ...]] = {
    "full": ("full",),
    "global_tokens": ("global_tokens(count=3)", "global_tokens(count=70)"),
    "band": ("band(window=5)", "band(window=0)", "band(window=70)"),
    "dilated": (
        "dilated(window=5, dilation=3)",
        "dilated(window=0, dilation=2)",
        "dilated(window=6, dilation=1)",
        "dilated(window=70, dilation=5)",
    ),
    "strided": ("strided(stride=5)", "strided(stride=1)", "strided(stride=7)"),
    "random": (
        "random(count=2, block=6)",
        "random(count=3, block=1)",
        "random(count=5, block=4)",
        "random(count=1, block=70)",
    ),
    "block_local": ("block_local(block=6)", "block_local(block=70)"),
    "longformer": (
        "longformer(window=5, global_tokens=3)",
        "longformer(window=5)",
        "longformer(window=2, dilation=3, global_tokens=7)",
        "longformer(window=6, dilation=2)",
        "longformer(window=0, global_tokens=70)",
    ),
    "bigbird": (
        "bigbird(block=5, random=2)",
        "bigbird(block=4, random=0, window=5)",
        "bigbird(block=3, random=4, window=1)",
        "bigbird(block=5, random=2, variant=etc, global_tokens=3)",
        "bigbird(block=4, random=1, variant=etc)",
        "bigbird(block=70)",
    ),
    "sparse_transformer": (
        "sparse_transformer(stride=5, part=both)",
        "sparse_transformer(stride=1, part=both)",
        "sparse_transformer(stride=70, part=local)",
        "sparse_transformer(stride=5, part=summary)",
        "sparse_transformer(pattern=fixed, stride=6, summary=2, part=both)",
        "sparse_transformer(pattern=fixed, stride=5, summary=5, part=both)",
        "sparse_transformer(pattern=fixed, stride=6, part=local)",
        "sparse_transformer(pattern=fixed, stride=7, summary=3, part=summary)",
    ),
    "axial": ("axial(width=6)", "axial(axis=column, width=6)", "axial(width=70)"),
    "image_local": (
        "image_local(width=7, query_height=2, query_width=3, memory_height=1, memory_width=2)",
        "image_local(width=6, query_height=3, query_width=2, memory_height=4, memory_width=3)",
        "image_local(width=0, query_height=1, query_width=5, memory_height=0, memory_width=6)",
        "image_local(width=9, query_height=2, query_width=4, memory_height=0, memory_width=0)",
    ),
    "reformer": (
        "reformer(buckets=4, window=5)",
        "reformer(buckets=6, window=5, rounds=3)",
        "reformer(buckets=2, window=70, rounds=2)",
        "reformer(buckets=20, window=1)",
        "reformer(buckets=4, variant=paper, chunk=5, rounds=2)",
        "reformer(buckets=6, variant=paper, chunk=70)",
    ),
    "sac": ("sac(edges=3, predictor=parallel)", "sac(edges=2)"),
    "routing": (
        "routing(clusters=4, window=6)",
        "routing(clusters=4, window=6, query_clusters=1)",
        "routing(clusters=3, window=6, query_clusters=3, gate=true)",
        "routing(clusters=4, window=6, share_qk=true)",
        "routing(clusters=5, window=6, membership=threshold)",
        "routing(clusters=5, window=4, membership=threshold, gate=true)",
        "routing(clusters=3, window=6, membership=random)",
        "routing(clusters=5, window=6, membership=lsh)",
        "routing(clusters=1, window=70, query_clusters=1)",
        "routing(clusters=4, window=6, membership=paper)",
    ),
    "moba": (
        "moba(block=6, top=2)",
        "moba(block=1, top=3)",
        "moba(block=5, top=1)",
        "moba(block=4, top=70)",
        "moba(block=70, top=2)",
    ),
    "nsa": (
        "nsa(block=6, top=2, window=5)",
        "nsa(block=1, top=3, window=0)",
        "nsa(block=5, top=1, window=70)",
        "nsa(block=70, top=2, window=4)",
    ),
    "linear": ("linear",),
    "memory_compressed": (
        "memory_compressed(stride=3)",
        "memory_compressed(stride=1)",
        "memory_compressed(stride=17)",
    ),
    "linformer": (
        "linformer(rank=4, length=256)",
        "linformer(rank=4, length=256, sharing=headwise)",
        "linformer(rank=3, length=200, sharing=key_value)",
    ),
    "low_rank_band": (
        "low_rank_band(rank=3, window=5)",
        "low_rank_band(rank=8, window=0)",
        "low_rank_band(rank=1, window=70)",
    ),
    "csalr": ("csalr(landmarks=5)", "csalr(landmarks=1, scale=3.0)", "csalr(landmarks=70, scale=2)"),
    "nystrom": (
        "nystrom(landmarks=5, kernel=3)",
        "nystrom(landmarks=1, iterations=0, kernel=5)",  # more with iterations=0: test_nystrom.py
        "nystrom(landmarks=70, iterations=2, kernel=0)",
    ),
}
ALL = tuple(text for texts in SPECS.values() for text in texts)
MIXTURES = (
    "routing(clusters=4, window=6):2 + band(window=5):2",
    "band(window=3):1 + full:1 + block_local(block=6):1 + routing(clusters=3, window=4):1",
    "linear:2 + band(window=4):2",
    "sparse_transformer(stride=6, part=local):2 + sparse_transformer(stride=6, part=summary):2",
)

BLOCKS: dict[str, tuple[str, ...]] = {
    "transformer": (
        "transformer(attention='band(window=5)')",
        "transformer(attention='routing(clusters=4, window=6):2 + band:2', norm=post, activation=geglu)",
        "transformer(attention='linear', activation=relu, hidden=48)",
    ),
    "star": ("star", "star(ring=false, activation=leaky_relu)"),
    "etc": (
        "etc(radius=5, global_tokens=3, max_distance=3)",
        "etc(radius=6, global_tokens=5, max_distance=9, labels=1, projections=separate, activation=geglu)",
        "etc(radius=0, global_tokens=1, max_distance=0, projections=by_side, hidden=40)",
        "etc(radius=70, global_tokens=2, max_distance=2, activation=relu)",
    ),
    "binary_tree": (
        "binary_tree(k=2)",
        "binary_tree(k=1, clip=1, norm=pre, activation=geglu)",
        "binary_tree(k=3, clip=0, hidden=40)",
    ),
    "axial_image": (
        "axial_image(width=6)",
        "axial_image(width=7, outer=1, inner=1, activation=relu, shift=false)",
    ),
    "reversible": (
        "reversible(attention='band(window=5)')",
        "reversible(attention='reformer(buckets=4, window=5)', project=shared_qk, activation=relu)",
        "reversible(attention='routing(clusters=4, window=6):2 + band:2', activation=geglu, hidden=40)",
    ),
    "luna": ("luna(length=4)", "luna(length=3, activation=geglu, hidden=40)"),
    "poolingformer": (
        "poolingformer(window=3, second_window=9, kernel=3, stride=2)",
        "poolingformer(window=0, second_window=70, kernel=2, stride=5, pooling=convolution)",
        "poolingformer(window=2, second_window=6, kernel=4, stride=3, pooling=max, hidden=40)",
        "poolingformer(window=4, second_window=0, kernel=5, stride=1, pooling=mean, activation=relu)",
    ),
    "induced_set": (
        "induced_set(points=5)",
        "induced_set(points=0)",
        "induced_set(points=3, variant=official)",
    ),
}
ALL_BLOCKS = tuple(text for texts in BLOCKS.values() for text in texts)

# Option -> (other options, value to compare with the default under them). Each must change something.
CHANGES: dict[str, dict[str, tuple[dict[str, Any], Any]]] = {
    "full": {},
    "global_tokens": {"count": ({}, 3)},
    "band": {"window": ({}, 3)},
    "dilated": {"window": ({}, 3), "dilation": ({"window": 3}, 3)},
    "strided": {"stride": ({}, 3)},
    "random": {"count": ({"block": 4}, 2), "block": ({}, 4)},
    "block_local": {"block": ({}, 4)},
    "longformer": {
        "window": ({}, 3),
        "dilation": ({"window": 3}, 3),
        "global_tokens": ({"window": 3}, 2),
    },
    "bigbird": {
        "block": ({}, 4),
        "random": ({"block": 3}, 1),
        "window": ({"block": 3}, 5),
        "variant": ({"block": 3}, "etc"),
        "global_tokens": ({"block": 3, "variant": "etc"}, 2),
    },
    "sparse_transformer": {
        "pattern": ({"stride": 9}, "fixed"),
        "stride": ({}, 4),
        "summary": ({"pattern": "fixed", "stride": 9}, 2),
        "part": ({"stride": 4}, "local"),
    },
    "axial": {"axis": ({}, "column"), "width": ({}, 8), "height": ({"width": 5}, 7)},
    "image_local": {
        "width": ({"query_height": 2, "query_width": 4, "memory_width": 1}, 6),
        "height": ({"width": 5, "query_height": 3, "query_width": 2}, 8),
        "query_height": ({"width": 5}, 3),
        "query_width": ({"width": 5, "query_height": 2, "memory_width": 1}, 3),
        "memory_height": ({"width": 5, "query_height": 3}, 1),
        "memory_width": ({"width": 5, "query_height": 2, "query_width": 2}, 1),
    },
    "linear": {},
    "memory_compressed": {"stride": ({}, 2)},
    "low_rank_band": {"rank": ({}, 3), "window": ({}, 2)},
    "csalr": {"landmarks": ({}, 4), "scale": ({}, 2.0)},
    "nystrom": {
        "landmarks": ({}, 4),
        "iterations": ({"landmarks": 4}, 2),
        "kernel": ({}, 3),
    },
    "linformer": {"rank": ({}, 3), "length": ({}, 64), "sharing": ({}, "headwise")},
    "reformer": {
        "buckets": ({}, 4),
        "window": ({"buckets": 2}, 3),
        "rounds": ({"buckets": 4}, 2),
        "variant": ({"buckets": 4, "window": 5, "chunk": 6}, "paper"),
        "chunk": ({"buckets": 4, "variant": "paper"}, 6),
        "allow_selection_leak": ({"buckets": 4, "variant": "paper", "chunk": 6}, True),
    },
    "sac": {"edges": ({}, 2), "predictor": ({}, "parallel")},
    "routing": {
        "clusters": ({}, 3),
        "window": ({"clusters": 2}, 3),
        "query_clusters": ({"clusters": 4, "window": 6}, 1),
        "share_qk": ({}, True),
        "membership": ({}, "random"),
        "gate": ({}, True),
        "decay": ({}, 0.5),
        "allow_selection_leak": ({"membership": "paper", "clusters": 4, "window": 6}, True),
    },
    "moba": {"block": ({"top": 1}, 4), "top": ({"block": 4}, 1)},
    "nsa": {
        "block": ({"top": 1, "window": 3}, 4),
        "top": ({"block": 4, "window": 3}, 1),
        "window": ({"block": 4, "top": 1}, 3),
    },
    "alibi": {},
    "multi_head": {},
    "local_global": {},
    "shared_qk": {},
    "grouped_query": {"kv_heads": ({}, 2)},
    "concatenate": {},
    "transformer": {
        "attention": ({}, "band(window=2)"),
        "norm": ({}, "post"),
        "activation": ({}, "relu"),
        "hidden": ({}, 24),
        "dropout": ({}, 0.5),
    },
    "star": {"ring": ({}, False), "activation": ({}, "leaky_relu")},
    "etc": {
        "radius": ({}, 3),
        "global_tokens": ({}, 3),
        "max_distance": ({}, 5),
        "labels": ({}, 1),
        "projections": ({}, "by_side"),
        "activation": ({}, "relu"),
        "hidden": ({}, 24),
    },
    "binary_tree": {
        "k": ({}, 2),
        "clip": ({}, 1),
        "norm": ({}, "pre"),
        "activation": ({}, "gelu"),
        "hidden": ({}, 24),
    },
    "axial_image": {
        "width": ({}, 8),
        "height": ({"width": 5}, 7),
        "outer": ({}, 1),
        "inner": ({}, 1),
        "shift": ({}, False),
        "activation": ({}, "relu"),
        "hidden": ({}, 24),
    },
    "reversible": {
        "attention": ({}, "band(window=2)"),
        "project": ({}, "shared_qk"),
        "activation": ({}, "relu"),
        "hidden": ({}, 24),
        "dropout": ({}, 0.5),
    },
    "luna": {
        "length": ({}, 3),
        "activation": ({}, "relu"),
        "hidden": ({}, 24),
        "learned_start": ({}, False),
    },
    "poolingformer": {
        "window": ({}, 2),
        "second_window": ({}, 3),
        "kernel": ({}, 2),
        "stride": ({}, 3),
        "pooling": ({}, "max"),
        "activation": ({}, "relu"),
        "hidden": ({}, 24),
    },
    "induced_set": {"points": ({}, 3), "variant": ({}, "official"), "hidden": ({}, 24)},
}

# How `cost().flops` is held against the definition.
#   visible  4 D for each pair that the dense twin shows      all  4 D for each pair, hidden or not
#   counted  exactly what the kernel multiplies               bound  at least what the dense twin shows
CostRule = Literal["visible", "all", "counted", "bound"]
COSTS: dict[str, tuple[str, CostRule, float]] = {  # spec, rule, growth of the FLOPs with n as an exponent
    "full": ("full", "all", 2.0),
    "global_tokens": ("global_tokens(count=128)", "visible", 1.0),
    "band": ("band(window=128)", "visible", 1.0),
    "dilated": ("dilated(window=128, dilation=2)", "visible", 1.0),
    "strided": ("strided(stride=4)", "visible", 2.0),
    "random": ("random(count=3, block=64)", "visible", 1.0),
    "block_local": ("block_local(block=128)", "visible", 1.0),
    "longformer": ("longformer(window=128, global_tokens=64)", "visible", 1.0),
    "bigbird": ("bigbird(block=64, random=3)", "visible", 1.0),
    "sparse_transformer": ("sparse_transformer(stride=3)", "visible", 2.0),
    "axial": ("axial(width=128)", "visible", 1.0),
    "image_local": (
        "image_local(width=0, query_height=1, query_width=128, memory_height=0, memory_width=128)",
        "visible",
        1.0,
    ),
    "reformer": ("reformer(buckets=4, window=256)", "bound", 1.0),
    "sac": ("sac(edges=8, predictor=parallel)", "bound", 2.0),
    "routing": ("routing(clusters=4, window=128)", "bound", 1.0),
    "moba": ("moba(block=128, top=1)", "bound", 1.0),
    "nsa": ("nsa(block=128, top=2, window=256)", "bound", 1.0),
    "linear": ("linear", "counted", 1.0),
    "memory_compressed": ("memory_compressed(stride=4)", "bound", 2.0),
    "linformer": ("linformer(rank=16, length=8192)", "counted", 1.0),
    "low_rank_band": ("low_rank_band(rank=4, window=1)", "bound", 2.0),
    "csalr": ("csalr(landmarks=16)", "bound", 1.0),
    "nystrom": ("nystrom(landmarks=16, kernel=5)", "counted", 1.0),
}
