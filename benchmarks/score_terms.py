"""What a score term costs: forward + backward of a band with it, beside the same band without.

    python benchmarks/score_terms.py                    # about 2 minutes on 2 cores

Terms of the distance run through the native kernel's table, talking heads as wider heads on the native
kernel, the others on the torch path. Everything runs in one process, in another order in every round; the
time is the smallest. The gradients are those of q, k, v and of the term's own parameters. The spans
and scales are such that every term still sees the whole window: none is paid by seeing less.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import dated, write
from torch import Tensor

import mapformers as mf
from mapformers.core.score import ScoreTerm
from mapformers.kernels.native.library import load

HEADS, HEAD_DIM, WINDOW = 8, 64, 256
PLAIN = "no term"
TERMS = (
    "alibi",
    "t5_bias",
    "gaussian",
    "multi_scale(scales='1024')",
    "adaptive_span(initial=0.5)",
    "hard_gaussian",
    "t5_bias + adaptive_span(initial=0.5)",
)
BOUND = (
    "talking_heads",
    "shaw",
    "localness",
    "camtl(limit=4096, blocks=64)",
    "synthesizer(kind=factorised_random, limit=4096)",
    "adaptive_span(initial=0.5, dynamic=true)",
)
SLOWER = 10  # of the rounds of distance terms, one in so many is run with the others
Run = Callable[[], object]


def runs_of(n: int) -> dict[str, Run]:
    """One forward and backward of each, by name."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(1, HEADS, n, HEAD_DIM, generator=generator) for _ in range(4))
    for x in (q, k, v):
        x.requires_grad_()
    band = mf.mechanism("band", window=WINDOW)

    def both(term: ScoreTerm | None) -> Run:
        leaves: list[Tensor] = [v] if term is not None and term.replaces_scores else [q, k, v]
        leaves += [] if term is None else list(term.parameters())
        return lambda: torch.autograd.grad(
            mf.attend(band, q, k, v, causal=True, score=term), leaves, grad, allow_unused=True
        )

    terms = {text: mf.score(text, HEADS, HEAD_DIM, causal=True) for text in TERMS + BOUND}
    return {PLAIN: both(None)} | {text: both(term) for text, term in terms.items()}


def measure(n: int, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds, and how many times as long as without a term."""
    runs = runs_of(n)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(rounds + 1):
        names = [name for name in runs if name not in BOUND or repeat % SLOWER == 1]
        for name in random.Random(repeat).sample(names, len(names)):
            start = time.perf_counter()
            runs[name]()
            if repeat:
                times[name].append(time.perf_counter() - start)
    rows = {name: {"min": min(taken), "median": statistics.median(taken)} for name, taken in times.items()}
    for row in rows.values():
        row["ratio"] = row["min"] / rows[PLAIN]["min"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/<date>-score-terms.json")
    options = parser.parse_args()
    if load().library is None:
        raise SystemExit(f"score_terms: needs the native kernel, which is missing: {load().reason}")
    rows = measure(options.length, options.rounds)
    print(f"{f'band(window={WINDOW}), n={options.length:,}':50}{'ms':>9}{'ratio':>8}")
    for name, row in rows.items():
        print(f"{name:50}{1000 * row['min']:9.1f}{row['ratio']:8.2f}")
    settings = {"length": options.length, "rounds": options.rounds, "heads": HEADS, "head_dim": HEAD_DIM}
    output = options.output or dated("score-terms")
    write(output, {"benchmark": "score_terms", "settings": settings | {"window": WINDOW}, "rows": rows})
    print(f"written to {output}")


if __name__ == "__main__":
    main()
