"""The duplication task of Reformer: are more rounds of hashing at evaluation ever worse?

One reversible layer (attention, then feed-forward), learned positions, sequences "0 w 0 w"; the loss and the
accuracy are those of the second w. Every row trains the same model (same parameters, data, steps, seeds) and
is scored on the same fresh examples by full attention and with 1, 2, 4 and 8 rounds: the shared queries and
keys stay, and who sees whom changes. The result is written after every run.

  OMP_NUM_THREADS=1 python benchmarks/duplication.py --length 256 --rows full,4,2,1 --seeds 3
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import command, dated, machine, rows_held, summary, write
from torch import Tensor, nn

import mapformers as mf
from mapformers.attention.multi_head import MultiHeadAttention
from mapformers.core.carry import Carry
from mapformers.core.draw import linear, normal
from mapformers.core.mechanism import Mechanism
from mapformers.mechanisms.content.reformer import Reformer
from mapformers.tasks.duplication import Duplication, accuracy

SEED_OF_SCORES = 10_000  # apart from the seeds of training
EVALUATED = ("full", "8", "4", "2", "1")


class DuplicationModel(nn.Module):
    """Logits [B, K, V] at the places of a batch."""

    def __init__(self, task: Duplication, options: argparse.Namespace, seed: int) -> None:
        super().__init__()
        generator, dim = torch.Generator().manual_seed(seed), options.dim
        self.token = nn.Parameter(normal((task.vocabulary, dim), generator))
        self.position = nn.Parameter(normal((task.length, dim), generator))
        attention = f"reformer(buckets={options.buckets}, window={options.window})"
        self.block = mf.block(
            f"reversible(attention={attention!r}, project=shared_qk, hidden={dim})",
            dim,
            options.heads,
            causal=True,
            seed=generator,
        )
        self.norm, self.head = nn.LayerNorm(dim), linear(dim, task.vocabulary, generator)
        (self.hashed,) = self.attention.mechanisms  # bound, with its seed

    @property
    def attention(self) -> MultiHeadAttention:
        found = self.block.attention
        assert isinstance(found, MultiHeadAttention)
        return found

    def see(self, row: str) -> None:
        """From now on by full attention, or by hashing in so many rounds."""
        mechanism: Mechanism = self.hashed
        if row == "full":
            mechanism = mf.mechanism("reformer", buckets=2, window=2**20).bind(self.hashed.shape)
            mechanism.rotations.zero_()  # all tokens lie in the first bucket: everything but the own key
        else:
            assert isinstance(mechanism, Reformer)
            mechanism.set_rounds(int(row))
        self.attention.mechanisms[0] = mechanism

    def forward(self, tokens: Tensor, place: Tensor) -> Tensor:
        x = F.embedding(tokens, self.token) + self.position[: tokens.shape[1]]
        x, _ = self.block(x, Carry())
        return self.head(self.norm(x[:, place]))


def train(row: str, seed: int, task: Duplication, options: argparse.Namespace) -> dict[str, Any]:
    """One run: accuracies on fresh examples by everything in EVALUATED, and how it came about."""
    model = DuplicationModel(task, options, seed)
    model.see(row)
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_at(step, options.steps))
    generator = torch.Generator().manual_seed(seed)
    curve: list[dict[str, Any]] = []
    begun = time.process_time()
    for step in range(1, options.steps + 1):
        batch = task.batch(options.batch, generator)
        logits = model(batch.tokens, batch.place)
        loss = F.cross_entropy(logits.flatten(0, 1), batch.target.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % options.every == 0:
            curve.append({"step": step, "loss": round(loss.item(), 4), "accuracy": score(model, task, 100)})
            if options.verbose:
                print(f"  {row} seed {seed} {time.process_time() - begun:.0f} s: {curve[-1]}", flush=True)
    seconds = round(time.process_time() - begun, 1)
    by_rounds = {}
    for other in EVALUATED:
        model.see(other)
        by_rounds[other] = score(model, task, options.examples)
    return {"seed": seed, "by_rounds": by_rounds, "cpu_seconds": seconds, "curve": curve}


def rate_at(step: int, steps: int) -> float:
    """Share of the learning rate: up over 100 steps, down to a tenth over the last third."""
    return min(1.0, (step + 1) / 100, 0.1 + 0.9 * 3 * (1 - step / steps))


@torch.no_grad()
def score(model: DuplicationModel, task: Duplication, examples: int) -> float:
    """Accuracy on fresh examples, the same for every row and seed."""
    generator, right, done = torch.Generator().manual_seed(SEED_OF_SCORES), 0.0, 0
    while done < examples:
        batch = task.batch(min(100, examples - done), generator)
        right += len(batch.tokens) * accuracy(model(batch.tokens, batch.place), batch.target)
        done += len(batch.tokens)
    return right / examples


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--length", type=int, default=256)
    add("--symbols", type=int, default=127)
    add("--rows", default="full,4,2,1", help="trained with full attention or with so many rounds")
    add("--seeds", type=int, default=1)
    add("--steps", type=int, default=1600)
    add("--buckets", type=int, default=16)
    add("--window", type=int, default=24)
    add("--dim", type=int, default=128)
    add("--heads", type=int, default=4)
    add("--batch", type=int, default=32)
    add("--rate", type=float, default=2e-3)
    add("--examples", type=int, default=1000, help="fresh examples of a final score")
    add("--every", type=int, default=200, help="steps between the points of a curve")
    add("--output", type=Path, help="default: benchmarks/results/<date>-duplication-LENGTH.json")
    add("--verbose", action="store_true")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    task = Duplication(options.length, options.symbols)
    output = options.output or dated(f"duplication-{options.length}")
    settings = {name: value for name, value in vars(options).items() if name not in ("output", "verbose")}
    rows = rows_held(output, settings)
    for seed in range(options.seeds):
        for name in options.rows.split(","):
            runs: list[dict[str, Any]] = rows.get(name, {}).get("runs", [])
            if seed < len(runs):
                continue
            runs.append({**train(name, seed, task, options), "commit": machine()["commit"]})
            means = {other: summary([run["by_rounds"][other] for run in runs]) for other in EVALUATED}
            rows[name] = {"by_rounds": means, "runs": runs}
            settings["rows"] = ",".join(rows)
            whole = command().replace(options.rows, settings["rows"])  # what makes this table in one go
            write(output, {"command": whole, "benchmark": "duplication", "settings": settings, "rows": rows})
            print(f"trained with {name:5} seed {seed}: {runs[-1]['by_rounds']}", flush=True)
    print("\nmean accuracy\ntrained \\ seen by " + " ".join(f"{other:>7}" for other in EVALUATED))
    for name, row in rows.items():
        print(f"{name:17} " + " ".join(f"{row['by_rounds'][other]['mean']:7.4f}" for other in EVALUATED))
    print(f"written to {output}")


if __name__ == "__main__":
    main()
