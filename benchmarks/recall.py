"""Multi-query associative recall: which mechanisms find a pair that lies out of the band's reach?

Every row trains the same model (same parameters, data, steps and seeds) with another attention mechanism: 2
layers, no feed-forward, no positions; input = embedding of the current token + another of the previous one.
A curriculum, the same for all rows, is a list of stages PAIRSxLENGTH:STEPS that come before the task itself.
The result is written after every run. Runs that the output holds already, made with the same settings, are
kept: an interrupted study goes on, and further rows join a table.

  python benchmarks/recall.py --pairs 8 --length 64 --steps 1500 --seeds 3
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import command, dated, machine, rows_held, summary, write
from torch import Tensor, nn

import mapformers as mf
from mapformers.catalog import policy_names
from mapformers.core.carry import Carry
from mapformers.core.draw import linear, normal
from mapformers.core.policy import MovingBaseline
from mapformers.tasks.recall import Recall, RecallBatch, accuracy

EXAMPLES = 1000  # fresh examples of a final score
PROJECTS = {"reformer": "shared_qk"}  # what a mechanism's paper asks of the project port
SEED_OF_SCORES = 10_000  # apart from the seeds of training


class RecallModel(nn.Module):
    """Logits [B, K, V] at the query places of a batch."""

    def __init__(self, spec: str, options: argparse.Namespace, seed: int) -> None:
        super().__init__()
        generator, name = torch.Generator().manual_seed(seed), spec.partition("(")[0]
        dim, vocabulary = options.dim, options.vocabulary
        self.current = nn.Parameter(normal((vocabulary, dim), generator))
        self.previous = nn.Parameter(normal((vocabulary, dim), generator))
        self.head = linear(dim, vocabulary, generator)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(options.layers + 1))
        self.layers = nn.ModuleList(
            mf.attention(spec, dim, options.heads, causal=True, project=PROJECTS.get(name), seed=generator)
            for _ in range(options.layers)
        )

    def embed(self, tokens: Tensor) -> Tensor:
        before = F.pad(tokens, (1, 0))[:, :-1]
        return F.embedding(tokens, self.current) + F.embedding(before, self.previous)

    def forward(self, batch: RecallBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Logits, and what the layers return for training beside them, summed by name."""
        x, carry = self.embed(batch.tokens), Carry()
        for norm, layer in zip(self.norms, self.layers, strict=False):
            attended = layer.attend(norm(x))
            x = x + attended.output
            carry = carry.add_losses(attended.losses)
        x = x.gather(1, batch.place.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        return self.head(self.norms[-1](x)), carry.losses

    def update_centroids(self) -> None:
        for layer in self.layers:
            layer.update_centroids()


def train(
    spec: str, seed: int, stages: list[tuple[Recall, int]], options: argparse.Namespace
) -> dict[str, Any]:
    """One run: accuracy on fresh examples of the last stage, and how it came about."""
    model = RecallModel(spec, options, seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=options.weight_decay)
    generator, baseline = torch.Generator().manual_seed(seed), MovingBaseline()
    curve: list[dict[str, Any]] = []
    begun, step = time.process_time(), 0
    for task, steps in stages:
        for _ in range(steps):
            batch = task.batch(options.batch, generator)
            logits, auxiliary = model(batch)
            loss = F.cross_entropy(logits.flatten(0, 1), batch.target.flatten())
            excess = baseline(loss)
            weights = {name: excess if name in policy_names() else options.commitment for name in auxiliary}
            optimiser.zero_grad()
            (loss + sum(weights[name] * one for name, one in auxiliary.items())).backward()
            optimiser.step()
            model.update_centroids()
            step += 1
            if step % options.every == 0:
                right = score(model, task, 200)
                curve.append(
                    {"step": step, "length": task.length, "loss": round(loss.item(), 4), "accuracy": right}
                )
                if options.verbose:
                    print(
                        f"  {spec} seed {seed} {time.process_time() - begun:.0f} s: {curve[-1]}", flush=True
                    )
    task = stages[-1][0]
    return {
        "seed": seed,
        "accuracy": score(model, task, EXAMPLES),
        "cpu_seconds": round(time.process_time() - begun, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        **reach(model, task),
        "telemetry": [layer.telemetry() for layer in model.layers],
        "curve": curve,
    }


@torch.no_grad()
def score(model: RecallModel, task: Recall, examples: int) -> float:
    """Accuracy on fresh examples, the same for every row and seed."""
    generator, right, done = torch.Generator().manual_seed(SEED_OF_SCORES), 0.0, 0
    model.eval()
    while done < examples:
        batch = task.batch(min(100, examples - done), generator)
        right += len(batch.tokens) * accuracy(model(batch)[0], batch.target)
        done += len(batch.tokens)
    model.train()
    return right / examples


@torch.no_grad()
def reach(model: RecallModel, task: Recall) -> dict[str, list[float]]:
    """Per layer, by the dense definition: the share of past keys that a query sees (mean over heads), and
    how often some head sees the place of the pair's value.
    """
    batch = task.batch(8, torch.Generator().manual_seed(SEED_OF_SCORES))
    numbers: dict[str, list[float]] = {"keys_seen": [], "pair_seen": []}
    pair = _places_of_pairs(batch, task)  # [B, K]
    model.eval()
    x = model.embed(batch.tokens)
    for norm, layer in zip(model.norms, model.layers, strict=False):
        q, k, _ = layer.project(norm(x), norm(x))
        parts = zip(layer.mechanisms, q.split(layer.shares, 1), k.split(layer.shares, 1), strict=True)
        weights = torch.cat(
            [mf.dense_weights(one, *qk, causal=True) for one, *qk in parts], 1
        )  # [B, H, N, N]
        at = batch.place[:, None, :, None].expand(-1, weights.shape[1], -1, weights.shape[-1])
        sees = weights.gather(2, at) > 0  # [B, H, K, N]
        share = sees.sum(-1) / (batch.place[:, None] + 1)
        numbers["keys_seen"].append(round(float(share.mean()), 4))
        found = sees.gather(3, pair[:, None, :, None].expand(-1, sees.shape[1], -1, 1)).any(1)
        numbers["pair_seen"].append(round(float(found.double().mean()), 4))
        x = x + layer(norm(x))
    model.train()
    return numbers


def _places_of_pairs(batch: RecallBatch, task: Recall) -> Tensor:
    keys = batch.tokens[:, 0 : 2 * task.pairs : 2]
    asked = batch.tokens.gather(1, batch.place)
    return 2 * (asked.unsqueeze(-1) == keys.unsqueeze(1)).long().argmax(-1) + 1


def rows_of(options: argparse.Namespace) -> dict[str, str]:
    """Name to spec; every row may be chosen with --rows.

    Those of the sparse family see about as many keys as the routing row does.
    """
    sizes = f"clusters={options.clusters}, window={options.window}"
    width = round(options.length**0.5)  # of the grid as which the image mechanisms see a text
    side = width // 4
    image = f"query_height={side}, query_width={side}, memory_height={side}, memory_width={side}"
    return {
        "full": "full",
        "band": "band(window=8)",
        "routing": f"routing({sizes}{options.extra})",
        "random": f"routing({sizes}, membership=random)",
        "lsh": f"routing({sizes}, membership=lsh)",
        "global_tokens": "global_tokens(count=8)",
        "block_local": f"block_local(block={options.window})",
        "dilated": f"dilated(window={options.window // 2}, dilation=4)",
        "strided": "strided(stride=8)",
        "random_keys": "random(count=2, block=8)",
        "longformer": "longformer(window=8, global_tokens=8)",
        "sparse_strided": "sparse_transformer(pattern=strided, stride=8)",
        "sparse_fixed": "sparse_transformer(pattern=fixed, stride=8, summary=2)",
        "axial": f"axial(axis=row, width={width}):2 + axial(axis=column, width={width}):2",
        "image_local": f"image_local(width={width}, {image})",
        "reformer": f"reformer(buckets={options.clusters}, window={options.window}, rounds=2)",
        "moba": "moba(block=8, top=2)",
        "sac": "sac(predictor=parallel)",
        "sac_lstm": "sac",
        "nsa": "nsa(block=8, top=2, window=8)",
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pairs", type=int, default=8)
    add("--length", type=int, default=64)
    add("--vocabulary", type=int, default=256)
    add("--curriculum", default="", help="stages before the task, PAIRSxLENGTH:STEPS, separated by commas")
    add("--steps", type=int, default=1500, help="steps on the task itself")
    add("--seeds", type=int, default=3)
    add("--first-seed", type=int, default=0)
    add("--rows", default="full,band,routing,random,lsh")
    add("--clusters", type=int, default=8)
    add("--window", type=int, default=16)
    add("--extra", default="", help='further options of routing, for example ", gate=true"')
    add("--dim", type=int, default=64)
    add("--heads", type=int, default=4)
    add("--layers", type=int, default=2)
    add("--batch", type=int, default=64)
    add("--rate", type=float, default=2e-3)
    add("--weight-decay", type=float, default=0.01)
    add("--commitment", type=float, default=1e-4, help="weight of the auxiliary losses")
    add("--every", type=int, default=100, help="steps between the points of a curve")
    add("--output", type=Path, help="default: benchmarks/results/<date>-recall-LENGTH-PAIRS.json")
    add("--verbose", action="store_true")
    return parser.parse_args(arguments)


def stages_of(options: argparse.Namespace) -> list[tuple[Recall, int]]:
    stages = []
    for stage in filter(None, options.curriculum.split(",")):
        sizes, steps = stage.split(":")
        pairs, length = sizes.split("x")
        stages.append((Recall(int(pairs), int(length), vocabulary=options.vocabulary), int(steps)))
    return [*stages, (Recall(options.pairs, options.length, vocabulary=options.vocabulary), options.steps)]


def main() -> None:
    options = parse()
    stages, specs = stages_of(options), rows_of(options)
    output = options.output or dated(f"recall-{options.length}-{options.pairs}")
    settings = {name: value for name, value in vars(options).items() if name not in ("output", "verbose")}
    rows = rows_held(output, settings)
    for name in options.rows.split(","):
        runs: list[dict[str, Any]] = rows.get(name, {}).get("runs", [])
        for seed in range(options.first_seed + len(runs), options.first_seed + options.seeds):
            runs.append({**train(specs[name], seed, stages, options), "commit": machine()["commit"]})
            rows[name] = {"spec": specs[name], **summary([run["accuracy"] for run in runs]), "runs": runs}
            settings["rows"] = ",".join(rows)
            whole = command().replace(options.rows, settings["rows"])  # what makes this table in one go
            write(output, {"command": whole, "benchmark": "recall", "settings": settings, "rows": rows})
            last = {key: value for key, value in runs[-1].items() if key not in ("curve", "telemetry")}
            print(f"{name:8} {last}", flush=True)
    print(f"\n{'':14} mean accuracy over seeds (standard error)")
    for name, row in rows.items():
        print(f"{name:14} {row['mean']:.4f} ({row['standard_error']:.4f})  {row['spec']}")
    print(f"written to {output}")


if __name__ == "__main__":
    main()
