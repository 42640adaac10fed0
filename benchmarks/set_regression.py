"""The maximum of a set: attention between elements and attention pooling against means.

Sets of 1 to 10 numbers in [0, 100) (Lee et al. 2019, section 5.1), fresh ones in every step; a row is an
encoder and a pooling, then one linear map. Encoders: `sab` (attention between all pairs), `isab` (through
learned points), `ff` (each number alone). Poolings: `pma` (attention of one learned seed), `mean`, `max`.
All rows have the same steps, data and seeds; the score is the mean absolute error on the same fresh sets.

  OMP_NUM_THREADS=1 python benchmarks/set_regression.py --seeds 3
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from common import dated, rows_held, summary, write
from torch import Tensor, nn

import mapformers as mf
from mapformers.blocks.base import Site
from mapformers.blocks.feed_forward import FeedForward
from mapformers.blocks.set_attention import InducedSetBlock, InducedSetConfig, SetPooling
from mapformers.core.carry import Carry
from mapformers.core.draw import linear
from mapformers.tasks.max_regression import MaxRegression

SEED_OF_SCORES = 10_000  # apart from the seeds of training
ROWS = "sab-pma,isab-pma,ff-pma,sab-mean,isab-mean,ff-mean,ff-max"


class RowWise(nn.Module):
    """Every element on its own, with the residual and the norm of the attention blocks."""

    def __init__(self, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.inner, self.norm = FeedForward(dim, 4 * dim, "relu", generator), nn.LayerNorm(dim)

    def forward(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        return self.norm(x + self.inner(x)), carry


class SetModel(nn.Module):
    """Numbers [B, N] to one number [B]."""

    def __init__(self, row: str, task: MaxRegression, options: argparse.Namespace, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        encoder, self.pooling = row.split("-")
        self.scale = task.high
        site = Site(
            options.dim,
            options.heads,
            causal=False,
            rotary=False,
            generator=generator,
            attention=lambda text: mf.attention(text, options.dim, options.heads, seed=generator),
        )
        self.embed = linear(1, options.dim, generator, bias=True)
        points = {"sab": 0, "isab": options.points}
        self.blocks = nn.ModuleList(
            RowWise(options.dim, generator)
            if encoder == "ff"
            else InducedSetBlock(InducedSetConfig(points=points[encoder]), site)
            for _ in range(options.layers)
        )
        if self.pooling == "pma":
            self.pool = SetPooling(site, seeds=1)
        self.head = linear(options.dim, 1, generator, bias=True)

    def forward(self, numbers: Tensor, is_real: Tensor) -> Tensor:
        x, carry = self.embed(numbers.unsqueeze(-1) / self.scale), Carry(key_is_real=is_real)
        for block in self.blocks:
            x, carry = block(x, carry)
        real = is_real.unsqueeze(-1)
        if self.pooling == "pma":
            pooled = self.pool(x, is_real)[:, 0]
        elif self.pooling == "mean":
            pooled = (x * real).sum(1) / real.sum(1)
        else:
            pooled = x.masked_fill(~real, float("-inf")).amax(1)
        return self.head(pooled).squeeze(-1) * self.scale


@torch.no_grad()
def score(model: SetModel, task: MaxRegression, options: argparse.Namespace) -> float:
    """Mean absolute error on fresh sets."""
    numbers, is_real, target = task.batch(options.sets, torch.Generator().manual_seed(SEED_OF_SCORES))
    return float((model(numbers, is_real) - target).abs().mean())


def train(row: str, seed: int, task: MaxRegression, options: argparse.Namespace) -> dict[str, Any]:
    """One run."""
    model, generator = SetModel(row, task, options, seed), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=0.0)
    begun = time.process_time()
    for step in range(options.steps):
        rate = options.rate * min(1.0, (step + 1) / 100) * (1 + math.cos(math.pi * step / options.steps)) / 2
        for group in optimiser.param_groups:
            group["lr"] = rate
        numbers, is_real, target = task.batch(options.batch, generator)
        optimiser.zero_grad()
        ((model(numbers, is_real) - target).abs().mean() / task.high).backward()
        optimiser.step()
    error, seconds = score(model, task, options), time.process_time() - begun
    print(f"  {row:10} seed {seed}  error {error:.3f}  {seconds:.0f} s", flush=True)
    parameters = sum(p.numel() for p in model.parameters())
    return {"seed": seed, "error": error, "cpu_seconds": round(seconds, 1), "parameters": parameters}


def of_a_constant(task: MaxRegression, options: argparse.Namespace) -> float:
    """Error of the best constant, the median target: what a model that saw nothing would reach."""
    _, _, target = task.batch(options.sets, torch.Generator().manual_seed(SEED_OF_SCORES))
    return float((target - target.median()).abs().mean())


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rows", default=ROWS)
    add("--seeds", type=int, default=3)
    add("--steps", type=int, default=1000)
    add("--batch", type=int, default=64)
    add("--dim", type=int, default=32)
    add("--heads", type=int, default=4)
    add("--layers", type=int, default=2)
    add("--points", type=int, default=8, help="learned points of isab")
    add("--rate", type=float, default=2e-3)
    add("--sets", type=int, default=5000, help="fresh sets of a score")
    add("--output", type=Path, help="default: benchmarks/results/<date>-set-regression.json")
    return parser.parse_args(arguments)


def main() -> None:
    options, task = parse(), MaxRegression()
    output = options.output or dated("set-regression")
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    rows = rows_held(output, settings)
    constant = of_a_constant(task, options)
    for row in options.rows.split(","):
        runs = rows.get(row, {}).get("runs", [])[: options.seeds]
        for seed in range(len(runs), options.seeds):
            runs.append(train(row, seed, task, options))
            rows[row] = {"runs": runs, "error": summary([run["error"] for run in runs])}
            result = {"benchmark": "set_regression", "constant": constant, "settings": settings, "rows": rows}
            write(output, result)
    print(f"\n{'row':12}{'error':>8}  {'+-':>6}{'parameters':>12}{'seconds':>9}")
    for name, row in rows.items():
        runs, error = row["runs"], row["error"]
        seconds = sum(run["cpu_seconds"] for run in runs) / len(runs)
        spread = f"{error['mean']:8.3f}  {error['standard_error']:6.3f}"
        print(f"{name:12}{spread}{runs[0]['parameters']:12}{seconds:9.0f}")
    print(f"{'a constant':12}{constant:8.3f}\n\nwritten to {output}")


if __name__ == "__main__":
    main()
