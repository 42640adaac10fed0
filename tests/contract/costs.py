"""What a forward of every mechanism should cost, for test_cost.py."""

from typing import Literal

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
    "performer": ("performer(features=64)", "bound", 1.0),
    "rfa": ("rfa(features=32)", "counted", 1.0),
    "clustered": ("clustered(clusters=16)", "bound", 1.0),
    "improved_clustered": ("improved_clustered(clusters=16, top=16)", "bound", 1.0),
    "informer": ("informer(factor=8, threshold=4.0)", "bound", 1.0),
    "delta": ("delta(nu=2)", "counted", 1.0),
    "memory_compressed": ("memory_compressed(stride=4)", "bound", 2.0),
    "linformer": ("linformer(rank=16, length=8192)", "counted", 1.0),
    "low_rank_band": ("low_rank_band(rank=4, window=1)", "bound", 2.0),
    "csalr": ("csalr(landmarks=16)", "bound", 1.0),
    "nystrom": ("nystrom(landmarks=16, kernel=5)", "counted", 1.0),
}
