"""Coin flips: nobody can predict them, so a teacher-forced loss below ln 2 is a leak of the future.

Small causal models (all heads routing) train on fresh fair bits, the strict form and the published one
(membership="paper", allow_selection_leak=True) with the same parameters, steps and data. Each check gives the
loss on fresh sequences with its standard error over sequences; the end also the prefix-only loss: every
prediction made from a prefix that ends there, as generation does it.

  python benchmarks/coin_flips.py --steps 1000 --seeds 1
"""

import argparse
import math
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import dated, write
from torch import Tensor, nn

import mapformers as mf
from mapformers.core.carry import Carry
from mapformers.core.draw import linear, normal

CHANCE = math.log(2)
SEED_OF_SCORES = 20_000  # apart from the seeds of training
ROUTING = "routing(clusters={clusters}, window={window}{extra})"
PAPER = ', membership="paper", allow_selection_leak=true'


class CoinModel(nn.Module):
    """Bits [B, N] to logits [B, N, 2] for the next bit."""

    def __init__(self, spec: str, options: argparse.Namespace, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.bit = nn.Parameter(normal((2, options.dim), generator))
        self.place = nn.Parameter(normal((options.length, options.dim), generator))
        text = f"transformer(attention='{spec}', hidden={2 * options.dim})"
        self.blocks = nn.ModuleList(
            mf.block(text, dim=options.dim, heads=options.heads, causal=True, rotary=True, seed=generator)
            for _ in range(options.layers)
        )
        self.norm, self.head = nn.LayerNorm(options.dim), linear(options.dim, 2, generator)

    def forward(self, bits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the sum of the auxiliary losses."""
        x, carry = self.bit[bits] + self.place[: bits.shape[1]], Carry()
        for block in self.blocks:
            x, carry = block(x, carry)
        return self.head(self.norm(x)), sum(carry.losses.values(), x.new_zeros(()))


def flips(size: int, length: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (size, length + 1), generator=generator)


def losses(logits: Tensor, bits: Tensor) -> Tensor:
    """[B, N] of every prediction."""
    return F.cross_entropy(logits.flatten(0, 1), bits[:, 1:].flatten(), reduction="none").view(len(bits), -1)


@torch.no_grad()
def check(model: CoinModel, options: argparse.Namespace, step: int) -> dict[str, float]:
    """Teacher-forced loss on fresh sequences, its standard error, and how far below ln 2 in such errors."""
    model.eval()
    generator = torch.Generator().manual_seed(SEED_OF_SCORES + step)
    means = []
    for _ in range(options.sequences // 64):
        bits = flips(64, options.length, generator)
        means.append(losses(model(bits[:, :-1])[0], bits).mean(1))
    model.train()
    return {"step": step, **against_chance(torch.cat(means))}


@torch.no_grad()
def prefix_only(model: CoinModel, options: argparse.Namespace) -> dict[str, float]:
    """The loss of the last prediction of prefixes of 8 lengths: what generation would meet."""
    model.eval()
    generator = torch.Generator().manual_seed(SEED_OF_SCORES)
    bits = flips(256, options.length, generator)
    lengths = torch.linspace(options.length // 8, options.length, 8).long().tolist()
    each = torch.stack([losses(model(bits[:, :n])[0], bits[:, : n + 1])[:, -1] for n in lengths], 1)
    forced = losses(model(bits[:, :-1])[0], bits)[:, [n - 1 for n in lengths]]
    model.train()
    difference = float((each - forced).abs().max())
    return {**against_chance(each.mean(1)), "largest_difference_from_teacher_forced": difference}


def against_chance(per_sequence: Tensor) -> dict[str, float]:
    mean = float(per_sequence.double().mean())
    error = float(per_sequence.double().std()) / len(per_sequence) ** 0.5
    return {"loss": mean, "standard_error": error, "errors_below_chance": (CHANCE - mean) / max(error, 1e-12)}


def train(spec: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run with its checks."""
    model = CoinModel(spec, options, seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.rate)
    generator = torch.Generator().manual_seed(seed)
    begun, checks = time.process_time(), []
    for step in range(1, options.steps + 1):
        bits = flips(options.batch, options.length, generator)
        logits, auxiliary = model(bits[:, :-1])
        optimiser.zero_grad()
        (losses(logits, bits).mean() + options.commitment * auxiliary).backward()
        optimiser.step()
        for block in model.blocks:
            block.update_centroids()
        if step % options.every == 0 or step == options.steps:
            checks.append(check(model, options, step))
            print(f"  {spec} seed {seed} {time.process_time() - begun:.0f} s: {checks[-1]}", flush=True)
    return {
        "seed": seed,
        "cpu_seconds": round(time.process_time() - begun, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "lowest": max(check["errors_below_chance"] for check in checks),
        "prefix_only": prefix_only(model, options),
        "checks": checks,
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--length", type=int, default=128)
    add("--clusters", type=int, default=8)
    add("--window", type=int, default=16)
    add("--dim", type=int, default=64)
    add("--heads", type=int, default=4)
    add("--layers", type=int, default=2)
    add("--batch", type=int, default=32)
    add("--steps", type=int, default=1000)
    add("--seeds", type=int, default=1)
    add("--rows", default="strict,paper")
    add("--rate", type=float, default=2e-3)
    add("--commitment", type=float, default=1e-4, help="weight of the auxiliary losses")
    add("--every", type=int, default=250, help="steps between checks")
    add("--sequences", type=int, default=2048, help="fresh sequences of a check")
    add("--output", type=Path, help="default: benchmarks/results/<date>-coin-flips.json")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    output = options.output or dated("coin-flips")
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    rows: dict[str, Any] = {}
    warnings.filterwarnings("ignore", message="routing: allow_selection_leak")  # it is the subject
    for name in options.rows.split(","):
        extra = PAPER if name == "paper" else ""
        spec = ROUTING.format(clusters=options.clusters, window=options.window, extra=extra)
        runs: list[dict[str, Any]] = []
        for seed in range(options.seeds):
            runs.append(train(spec, seed, options))
            rows[name] = {"spec": spec, "runs": runs}
            write(output, {"benchmark": "coin_flips", "chance": CHANCE, "settings": settings, "rows": rows})
    for name, row in rows.items():
        for run in row["runs"]:
            forced, alone = run["checks"][-1], run["prefix_only"]
            print(
                f"{name:8} seed {run['seed']}  "
                f"teacher-forced {forced['loss']:.5f} +- {forced['standard_error']:.5f}  "
                f"prefix-only {alone['loss']:.5f} +- {alone['standard_error']:.5f}  "
                f"(ln 2 = {CHANCE:.5f}; at most {run['lowest']:.1f} errors below)"
            )
    print(f"written to {output}")


if __name__ == "__main__":
    main()
