"""What decoding keeps and takes with fewer key/value heads: full attention after many tokens.

    OMP_NUM_THREADS=1 python benchmarks/decode_heads.py        # 2 minutes, 1 core

One layer of 8 query heads of 64, whose state holds 16,384 tokens; then single tokens, every layer in turn.
Step times of a lazyformer block of two layers beside two transformer blocks stand below, 512 tokens, forward
and backward.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import dated, write

import mapformers as mf
from mapformers.attention.state import DenseState
from mapformers.core.carry import Carry

DIM, HEADS = 512, 8
PROJECTIONS = ("multi_head", "grouped_query(kv_heads=2)", "multi_query")
CHUNK, STEPS = 1024, 40
BLOCKS = {
    "two transformer blocks, full": ("transformer(attention=full)", 2),
    "lazyformer of two layers, full": ("lazyformer(attention=full)", 1),
    "two transformer blocks, routing": ("transformer(attention='routing(clusters=8, window=64)')", 2),
    "lazyformer of two layers, routing": ("lazyformer(attention='routing(clusters=8, window=64)')", 1),
}


@torch.no_grad()
def filled(project: str, tokens: int) -> tuple[Any, Any]:
    """A layer and its state after so many tokens."""
    layer = mf.attention("full", DIM, HEADS, causal=True, project=project).eval()
    state, generator = layer.init_state(1), torch.Generator().manual_seed(0)
    for _ in range(tokens // CHUNK):
        _, state = layer.step(torch.randn(1, CHUNK, DIM, generator=generator), state)
    return layer, state


def bytes_of(state: Any) -> int:
    """Of the keys and values held."""
    (part,) = state.parts
    assert isinstance(part, DenseState)
    return sum(x.held().nbytes for x in (part.keys, part.values))


@torch.no_grad()
def decoding(tokens: int) -> dict[str, dict[str, float]]:
    """Cache and seconds per token."""
    layers = {project: filled(project, tokens) for project in PROJECTIONS}
    rows = {project: {"cache_bytes": bytes_of(state)} for project, (_, state) in layers.items()}
    times: dict[str, list[float]] = {project: [] for project in layers}
    x = torch.randn(1, 1, DIM, generator=torch.Generator().manual_seed(1))
    for step in range(STEPS):
        for project in random.Random(step).sample(PROJECTIONS, len(PROJECTIONS)):
            layer, state = layers[project]
            start = time.perf_counter()
            _, state = layer.step(x, state)
            times[project].append(time.perf_counter() - start)
            layers[project] = (layer, state)
    for project, taken in times.items():
        rows[project]["seconds"] = statistics.median(taken[STEPS // 4 :])
    return rows


def training(rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of a forward and backward."""
    x = torch.randn(4, 512, DIM // 2, generator=torch.Generator().manual_seed(0))

    def run(blocks: list[Any]) -> Callable[[], None]:
        def once() -> None:
            y, carry = x, Carry()
            for block in blocks:
                y, carry = block(y, carry)
            y.square().mean().backward()

        return once

    runs = {
        name: run([mf.block(text, DIM // 2, HEADS // 2, causal=True, seed=i).train() for i in range(count)])
        for name, (text, count) in BLOCKS.items()
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(rounds + 1):
        for name in random.Random(repeat).sample(list(runs), len(runs)):
            start = time.perf_counter()
            runs[name]()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return {name: {"seconds": statistics.median(taken)} for name, taken in times.items()}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    decode, train = decoding(options.tokens), training(options.rounds)
    for project, row in decode.items():
        smaller = decode["multi_head"]["cache_bytes"] / row["cache_bytes"]
        size, spent = row["cache_bytes"] / 2**20, 1e3 * row["seconds"]
        print(f"{project:28s} {size:7.1f} MiB  {smaller:4.1f}x smaller  {spent:6.2f} ms")
    for name, row in train.items():
        print(f"{name:34s} {1e3 * row['seconds']:7.1f} ms")
    settings = {"tokens": options.tokens, "rounds": options.rounds, "heads": HEADS, "dim": DIM}
    write(dated("decode-heads"), {"settings": settings, "decode": decode, "train": train})


if __name__ == "__main__":
    main()
