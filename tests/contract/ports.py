"""What the contract suite runs of the ports of a layer: small score terms, and what every option changes."""

from typing import Any

# Small settings; limit: positions reach 39 in these tests.
SCORE_SPECS: dict[str, tuple[str, ...]] = {
    "localness": (
        "localness",
        "localness(window=fixed, size=4)",
        "localness(window=layer)",
        "localness(centre=offset)",
    ),
    "gaussian": ("gaussian(weight=0.05, penalty=0.3)",),
    "evolving": ("evolving", "evolving(prev_weight=0.5, conv_weight=0.2, activation=leaky_relu)"),
    "realformer": ("realformer", "realformer(mean=true)", "realformer(form=scores)"),
    "camtl": ("camtl(blocks=3, limit=16)", "camtl(blocks=2, limit=40, tasks=2, size=3)"),
    "hard_gaussian": ("hard_gaussian(sigma=2.0)", "hard_gaussian(centres='-2,0.5,1', sigma=3.0)"),
    "synthesizer": (
        "synthesizer(limit=40)",
        "synthesizer(limit=40, mix=true)",
        "synthesizer(kind=random, limit=40)",
        "synthesizer(kind=factorised_dense, limit=40, rank=3)",
        "synthesizer(kind=factorised_random, limit=40, rank=3)",
    ),
    "shaw": ("shaw(limit=3)", "shaw(limit=0)"),
    "alibi": ("alibi",),
    "t5_bias": ("t5_bias(buckets=8, limit=12)",),
    "talking_heads": ("talking_heads", "talking_heads(mix=before)", "talking_heads(mix=after, dynamic=true)"),
    "adaptive_span": (
        "adaptive_span(limit=20, ramp=4, initial=0.3)",
        "adaptive_span(limit=64, ramp=3, initial=0.9)",
        "adaptive_span(limit=30, ramp=4, initial=0.3, dynamic=true)",
    ),
    "multi_scale": ("multi_scale(scales='1,4,9,64')", "multi_scale(scales='7,2', alpha=0.5, layer=2)"),
}

# As CHANGES in table.py.
PORT_CHANGES: dict[str, dict[str, tuple[dict[str, Any], Any]]] = {
    "localness": {
        "window": ({}, "layer"),
        "size": ({"window": "fixed"}, 3),
        "centre": ({}, "offset"),
    },
    "evolving": {
        "prev_weight": ({}, 0.9),
        "conv_weight": ({}, 0.1),
        "activation": ({}, "linear"),
    },
    "realformer": {"mean": ({}, True), "form": ({}, "scores")},
    "synthesizer": {
        "kind": ({}, "random"),
        "limit": ({}, 40),
        "rank": ({"kind": "factorised_dense"}, 3),
        "mix": ({}, True),
        "trained": ({"kind": "random"}, False),
    },
    "shaw": {"limit": ({}, 2)},
    "talking_heads": {"mix": ({"dynamic": True}, "before"), "dynamic": ({}, True)},
    "gaussian": {"weight": ({}, 0.3), "penalty": ({}, 0.7)},
    "camtl": {
        "blocks": ({}, 3),
        "limit": ({}, 16),
        "tasks": ({}, 2),
        "size": ({"tasks": 2}, 3),
    },
    "hard_gaussian": {"centres": ({}, "-2,2"), "sigma": ({}, 2.0), "normalise": ({}, False)},
    "alibi": {},
    "t5_bias": {"buckets": ({}, 8), "limit": ({"buckets": 4}, 3)},
    "adaptive_span": {
        "limit": ({"initial": 0.5, "ramp": 2}, 4),
        "ramp": ({}, 2),
        "initial": ({"limit": 4, "ramp": 2}, 0.4),
        "dynamic": ({"initial": 0.2, "limit": 40}, True),
    },
    "multi_scale": {
        "scales": ({}, "3,5"),
        "alpha": ({"scales": "1,3"}, 1.0),
        "layer": ({"scales": "1,3", "alpha": 1.0}, 9),
    },
    "multi_head": {},
    "local_global": {},
    "shared_qk": {},
    "grouped_query": {"kv_heads": ({}, 2)},
    "multi_query": {},
    "head_size": {"size": ({}, 12)},
    "collaborative": {
        "width": ({}, 20),
        "content_bias": ({}, True),
        "start": ({}, "normal"),
    },
    "concatenate": {},
    "capsule": {
        "routing": ({}, "em"),
        "capsules": ({}, 2),
        "iterations": ({}, 1),
        "sharpness": ({"routing": "em"}, 2.0),
    },
    "disagreement": {"of": ({}, "position"), "include_self": ({}, False)},
    "guided": {
        "patterns": ({}, "same=2"),
        "measure": ({}, "entries"),
        "hold": ({"fade": 2}, 1),
        "fade": ({"hold": 0}, 2),
    },
}
