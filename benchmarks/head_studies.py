"""What priors and head schemes do to a small byte model: each preset of the studies beside its plain twin.

    OMP_NUM_THREADS=1 python benchmarks/head_studies.py --seeds 3 --workers 2   # 20 min, 2 cores

Every row is trained through the same code as `mapformers train`, with the same seeds and steps, and scored on
held-out files of the standard library. Times of a step are comparable within one run only.
"""

import argparse
import functools
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import common

from mapformers.attention.multi_head import MultiHeadAttention
from mapformers.priors.adaptive_span import AdaptiveSpan
from mapformers.tasks.corpus import load_corpus
from mapformers.train.evaluate import bits_per_byte
from mapformers.train.loading import load_trained
from mapformers.train.run import Request, train

# row -> preset and what is changed in it
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "adaptive span": ("adaptive-span-small", ()),
    "full span": ("adaptive-span-small", ('model.layers=[{attention: "full", repeat: 4}]',)),
    "talking heads, 16 of 6": ("talking-heads-small", ()),
    "plain, 16 heads of 6": ("talking-heads-small", ('model.layers=[{attention: "full", repeat: 3}]',)),
    "lazyformer, 3 x 2 layers": ("lazyformer-small", ()),
    "plain, 6 layers": ("lazyformer-small", ('model.layers=[{attention: "full", repeat: 6}]',)),
    "multi-query, 8 heads": ("multi-query-small", ()),
    "plain, 8 heads": ("multi-query-small", ('model.layers=[{attention: "full", repeat: 4}]',)),
    "realformer, 8 layers": ("realformer-small", ()),
    "plain, 8 layers": ("realformer-small", ('model.layers=[{attention: "full", repeat: 8}]',)),
}


def one(name: str, seed: int, folder: Path) -> dict[str, object]:
    """Train and score one row with one seed."""
    preset, changes = ROWS[name]
    run = folder / f"{list(ROWS).index(name)}-{seed}"
    result = train(Request(preset, run, "stdlib", changes, seed=seed))
    assert result is not None
    trained = load_trained(run)
    test = load_corpus(trained.run.data).split("test")
    layers = [module for module in trained.model.modules() if isinstance(module, MultiHeadAttention)]
    terms = [layer.score for layer in layers]
    return {
        "seed": seed,
        "parameters": result["parameters"],
        "seconds": result["seconds"],
        "bits_per_byte": bits_per_byte(trained.model, test, 256).bits_per_byte,
        # learned spans of all heads, layer by layer
        "spans": [term.spans().tolist() for term in terms if isinstance(term, AdaptiveSpan)],
    }


def main() -> None:
    """Train, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="runs at the same time")
    parser.add_argument("--rows", default=",".join(str(i) for i in range(len(ROWS))), help="numbers of rows")
    arguments = parser.parse_args()
    names = [list(ROWS)[int(i)] for i in arguments.rows.split(",")]
    runs: dict[str, list[dict[str, object]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        tasks = [(name, seed) for seed in range(arguments.seeds) for name in names]
        work = functools.partial(one, folder=Path(folder))
        with ProcessPoolExecutor(arguments.workers, multiprocessing.get_context("spawn")) as pool:
            for (name, seed), run in zip(tasks, pool.map(work, *zip(*tasks, strict=True)), strict=True):
                runs[name].append(run)
                print(f"{name:26s} {seed} {run['bits_per_byte']:.4f} {run['seconds']:.0f} s", flush=True)
    table = {
        name: {
            "parameters": rows[0]["parameters"],
            "bits_per_byte": common.summary([float(str(run["bits_per_byte"])) for run in rows]),
            "seconds": common.summary([float(str(run["seconds"])) for run in rows]),
        }
        for name, rows in runs.items()
    }
    for name, row in table.items():
        bits, seconds = row["bits_per_byte"], row["seconds"]
        print(f"{name:26s} {bits['mean']:.4f} +- {bits['standard_error']:.4f}  {seconds['mean']:.1f} s")
    for run in runs.get("adaptive span", []):
        print("spans", [[round(span) for span in layer] for layer in run["spans"]])
    common.write(common.dated("head-studies"), {"summary": table, "runs": runs})


if __name__ == "__main__":
    main()
