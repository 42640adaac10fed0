"""How many pairs fit into a sum or a matrix? Retrieval of values by keys, as the number of keys grows.

    OMP_NUM_THREADS=1 python benchmarks/capacity.py      # some six minutes

A sequence writes every key once (unique) or twice (rewritten: the last value counts), in random order and
with values dealt out anew; then every key is asked for, in another order. The score is what is left of the
squared error (1 = that of the answer zero) and how often the nearest value is the right one, on fresh
sequences. All rows have the same embeddings, projections, data and steps; what differs is the rule (sum =
linear attention, or delta) and the feature map. sum dpfp-3 is no entry of the catalogue: it tells what the
map does from what the rule does.

After Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174, the synthetic retrieval with a head size of 64.
Differs: keys do not see their values; values are unit vectors of 64 random numbers rather than one-hot (in
expectation the relative error of a linear memory is the same); every key is asked for, so that few sequences
make a batch; repeated keys come exactly twice; the number of steps is fixed; a linear read-out is trained.
Their curve over unique keys compares maps under the sum; their rules meet on repeated keys.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import dated, summary, write
from torch import Tensor, nn

import mapformers as mf
from mapformers.core.draw import linear, normal
from mapformers.core.mechanism import Shape
from mapformers.core.plans import Features, Plan
from mapformers.core.scope import Scope
from mapformers.mechanisms.linear.delta import Delta, DeltaConfig
from mapformers.mechanisms.linear.linear import Linear

WRITES = {"unique": 1, "rewritten": 2}  # of every key
SEED_OF_SCORES = 10_000  # apart from the seeds of training
ROWS = ("sum elu", "sum dpfp-3", "delta elu", "delta dpfp-1", "delta dpfp-2", "delta dpfp-3")


class SummedDelta(Delta):
    """The maps of the delta rule under the sum of linear attention."""

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        return Features(self._features(q), self._features(k))


def mechanism_of(row: str) -> Linear | Delta:
    """`rule map`, the map elu or dpfp-nu."""
    rule, _, feature = row.partition(" ")
    if row == "sum elu":
        return Linear()
    name, _, nu = feature.partition("-")
    kind = Delta if rule == "delta" else SummedDelta
    options: Any = {"map": name, "nu": int(nu or 1)}
    return kind(DeltaConfig(**options))


class Memory(nn.Module):
    """One head that writes pairs and reads keys."""

    def __init__(self, row: str, pairs: int, dim: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.keys = nn.Parameter(normal((pairs, dim), generator))
        self.to_key, self.to_query = linear(dim, dim, generator), linear(dim, dim, generator)
        self.read = nn.Linear(dim, dim)
        nn.init.eye_(self.read.weight)
        nn.init.zeros_(self.read.bias)
        self.values: Tensor
        self.register_buffer("values", F.normalize(normal((pairs, dim), generator), dim=-1))
        self.attention = mechanism_of(row).bind(Shape(1, 1, dim), generator)

    def forward(self, written: Tensor, dealt: Tensor, asked: Tensor) -> Tensor:
        """[B, S, dim] what is read; written, dealt and asked [B, S] are numbers of keys, values and keys."""
        tokens = torch.cat([written, asked], 1)
        keys = self.keys[tokens]
        q, k = (turn(keys).unsqueeze(1) for turn in (self.to_query, self.to_key))
        v = F.pad(self.values[dealt], (0, 0, 0, asked.shape[1])).unsqueeze(1)
        writes = torch.arange(tokens.shape[1]).expand_as(tokens) < written.shape[1]
        found = mf.attend(self.attention, q, k, v, causal=True, key_is_real=writes)
        return self.read(found[:, 0, written.shape[1] :])


def draw(pairs: int, writes: int, batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Keys written and values dealt [B, writes S], keys asked for and the last value of each [B, S]."""
    written, dealt = torch.rand(2, batch, writes * pairs, generator=generator).argsort(-1) % pairs
    asked = torch.rand(batch, pairs, generator=generator).argsort(-1)
    place = torch.arange(writes * pairs).expand_as(written)
    last = torch.zeros_like(asked).scatter_reduce(1, written, place, "amax")  # of each key
    return written, dealt, asked, dealt.gather(1, last.gather(1, asked))


def train(row: str, pairs: int, writes: int, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """One run: error and accuracy on fresh sequences."""
    memory = Memory(row, pairs, options.dim, seed)
    optimiser = torch.optim.Adam(memory.parameters(), lr=options.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.rate, total_steps=options.steps)
    generator = torch.Generator().manual_seed(seed)
    begun = time.process_time()
    for _ in range(options.steps):
        *tokens, right = draw(pairs, writes, max(1, options.queries // pairs), generator)
        loss = (memory(*tokens) - memory.values[right]).square().sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        fresh = torch.Generator().manual_seed(SEED_OF_SCORES)
        *tokens, right = draw(pairs, writes, max(4, 4000 // pairs), fresh)
        found = memory(*tokens)
        error = (found - memory.values[right]).square().sum(-1).mean()
        nearest = (found @ memory.values.T).argmax(-1)  # values are of length 1
    return {
        "seed": seed,
        "error": round(float(error), 5),
        "accuracy": round(float((nearest == right).double().mean()), 5),
        "cpu_seconds": round(time.process_time() - begun, 1),
    }


def cell(row: str, pairs: int, writes: int, options: argparse.Namespace) -> dict[str, Any]:
    """All seeds of one place of the table."""
    runs = [train(row, pairs, writes, seed, options) for seed in range(options.seeds)]
    return {**{name: summary([run[name] for run in runs]) for name in ("error", "accuracy")}, "runs": runs}


def chart_of(rows: dict[str, Any], task: str) -> dict[str, Any]:
    """The error over the number of keys, one line for each row."""
    lines = {
        row: [[int(count), one["error"]["mean"]] for count, one in found[task].items()]
        for row, found in rows.items()
    }
    return {"x": f"keys, {task}", "y": "squared error left", "lines": lines}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--unique", default="20,60,100,200,400,600", help="numbers of keys, each written once")
    add("--rewritten", default="20,60,100,200", help="numbers of keys, each written twice")
    add("--rows", default=",".join(ROWS))
    add("--seeds", type=int, default=3)
    add("--steps", type=int, default=100)
    add("--queries", type=int, default=400, help="of a batch; one sequence at least")
    add("--dim", type=int, default=64)
    add("--rate", type=float, default=3e-2)
    add("--output", type=Path, help="default: benchmarks/results/<date>-capacity.json")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    output = options.output or dated("capacity")
    counts = {task: [int(count) for count in getattr(options, task).split(",")] for task in WRITES}
    rows: dict[str, Any] = {}
    for task, writes in WRITES.items():
        print(f"{task} keys: squared error left / accuracy", flush=True)
        print(f"{'':13}" + "".join(f"{count:11,}" for count in counts[task]), flush=True)
        for row in options.rows.split(","):
            found = rows.setdefault(row, {})
            found[task] = {str(count): cell(row, count, writes, options) for count in counts[task]}
            shown = [
                f"{one['error']['mean']:.3f}/{one['accuracy']['mean']:.2f}" for one in found[task].values()
            ]
            print(f"{row:13}" + "".join(f"{one:>11}" for one in shown), flush=True)
    charts = [chart_of(rows, task) for task in WRITES]
    write(output, {"benchmark": "capacity", "settings": settings, "rows": rows, "charts": charts})
    print(f"written to {output}")


if __name__ == "__main__":
    main()
