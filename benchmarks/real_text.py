"""Half routing, half band against all band on real text, at equal steps, seeds and window.

The variants have the same parameters but for the null keys of routing.

    OMP_NUM_THREADS=1 python benchmarks/real_text.py --steps 250 --seeds 3 --workers 2   # 12 min, 2 cores

Both are trained through the same code as `mapformers train`, scored on the held-out files of the standard
library, and compared position by position.
"""

import argparse
import functools
import math
import multiprocessing
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import common
import torch

from mapformers.tasks.corpus import load_corpus
from mapformers.train.evaluate import bits_per_byte, byte_losses
from mapformers.train.loading import load_trained
from mapformers.train.run import Request, train

BUCKET = 256  # positions per row of the table
VARIANTS = {
    "all band": "band(window=128):4",
    "half routing, half band": "routing(clusters=8, window=128):2 + band(window=128):2",
}


def settings(attention: str, context: int, steps: int) -> tuple[str, ...]:
    """The common model, two band layers below two layers of the variant."""
    layers = f'[{{attention: "band(window=128):4", repeat: 2}}, {{attention: "{attention}", repeat: 2}}]'
    return (
        "model.hidden_size=128",
        "model.num_attention_heads=4",
        "model.intermediate_size=512",
        f"model.layers={layers}",
        f"data.context={context}",
        "data.batch=2",
        "data.train_bytes=4000000",
        "data.test_bytes=100000",
        "optimiser.learning_rate=2.0e-3",
        "optimiser.warmup_steps=30",
        f"training.max_steps={steps}",
        f"training.eval_every={steps}",
        f"training.save_every={steps}",
    )


@torch.no_grad()
def by_position(model: torch.nn.Module, text: torch.Tensor, context: int) -> list[float]:
    """Bits per byte for each bucket of positions, over windows that do not overlap."""
    windows = text[: len(text) // context * context].view(-1, context).long()
    losses = torch.cat([byte_losses(model, windows[i : i + 4]) for i in range(0, len(windows), 4)])
    bits = losses.double().mean(0) / math.log(2)  # [context - 1]
    return [float(bits[i : i + BUCKET].mean()) for i in range(0, context - 1, BUCKET)]


def one(name: str, seed: int, context: int, steps: int, folder: Path) -> dict[str, object]:
    """Train and score one variant with one seed."""
    run = folder / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
    result = train(Request("demo", run, "stdlib", settings(VARIANTS[name], context, steps), seed=seed))
    assert result is not None
    trained = load_trained(run)
    test = load_corpus(trained.run.data).split("test")
    score = bits_per_byte(trained.model, test, context)
    return {
        "seed": seed,
        "parameters": result["parameters"],
        "seconds": result["seconds"],
        "bits_per_byte": score.bits_per_byte,
        "by_position": by_position(trained.model, torch.from_numpy(test.copy()), context),
        "baselines": result["baselines"],
        "data": result["data"],
    }


def main() -> None:
    """Train, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--workers", type=int, default=1, help="runs at the same time")
    arguments = parser.parse_args()
    runs: dict[str, list[dict[str, object]]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        tasks = [(name, seed) for seed in range(arguments.seeds) for name in VARIANTS]
        work = functools.partial(one, context=arguments.context, steps=arguments.steps, folder=Path(folder))
        with ProcessPoolExecutor(arguments.workers, multiprocessing.get_context("spawn")) as pool:
            for (name, seed), run in zip(tasks, pool.map(work, *zip(*tasks, strict=True)), strict=True):
                runs[name].append(run)
                print(name, seed, run["bits_per_byte"], flush=True)
    table = {
        name: common.summary([float(run["bits_per_byte"]) for run in rows]) for name, rows in runs.items()
    }
    pairs = zip(*([float(run["bits_per_byte"]) for run in rows] for rows in runs.values()), strict=True)
    gain = common.summary([band - routing for band, routing in pairs])
    for name, row in table.items():
        print(f"{name:26s} {row['mean']:.4f} +- {row['standard_error']:.4f} bits per byte")
    print(f"gain of routing, seed by seed  {gain['mean']:.4f} +- {gain['standard_error']:.4f}")
    for name, rows in runs.items():
        columns = zip(*(run["by_position"] for run in rows), strict=True)
        print(f"{name:26s} " + " ".join(f"{statistics.fmean(column):.3f}" for column in columns))
    common.write(common.dated("real-text"), {"bucket": BUCKET, "summary": table, "gain": gain, "runs": runs})


if __name__ == "__main__":
    main()
