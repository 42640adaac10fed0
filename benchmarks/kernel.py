"""How much of the machine's matrix product rate the native kernel reaches: a band, forward and backward.

    python benchmarks/kernel.py        # about a minute on 2 cores

Useful work only: 4 H N w D operations forward and 10 backward, w = the keys that a query sees. Also bfloat16
beside float32, and one head on one thread and on all.
"""

import statistics
import time
from collections.abc import Callable

import common
import torch

import mapformers as mf
from mapformers.kernels.native import call
from mapformers.kernels.native.library import library

HEADS, DIM, WINDOW, LENGTH, ROUNDS = 8, 64, 128, 8192, 15


def best(run: Callable[[], object], rounds: int = ROUNDS) -> dict[str, float]:
    """Seconds: the shortest and the median of some runs."""
    run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return {"min": min(times), "median": statistics.median(times)}


def band(heads: int, dtype: torch.dtype, threads: int) -> tuple[call.Inputs, torch.Tensor]:
    """q, k, v with a plain band, and the gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, LENGTH, DIM, generator=generator).to(dtype) for _ in range(3))
    here = torch.arange(LENGTH, dtype=torch.int32)[None, None, None]
    pattern = call.Pattern(None, None, (here - WINDOW).clamp(min=0), here + 1)
    grad = torch.randn(1, heads, LENGTH, DIM, generator=generator)
    return call.Inputs(q, k, v, pattern, DIM**-0.5, threads), grad


def kernel(heads: int, dtype: torch.dtype, threads: int) -> dict[str, dict[str, float]]:
    """Forward and backward apart."""
    inputs, grad = band(heads, dtype, threads)
    attended = call.forward(library(), inputs)
    times = {
        "forward": best(lambda: call.forward(library(), inputs)),
        "backward": best(lambda: call.backward(library(), inputs, attended, (grad, None))),
    }
    pairs = heads * LENGTH * (WINDOW + 1) * DIM
    for name, work in (("forward", 4), ("backward", 10)):
        times[name]["gflops"] = work * pairs / times[name]["min"] / 1e9
    return times


def matmul_rate(threads: int) -> float:
    """GFLOP/s of a large float32 matrix product."""
    size = 2048
    left, right = torch.randn(2, size, size, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    rate = 2 * size**3 / best(lambda: left @ right)["min"] / 1e9
    torch.set_num_threads(before)
    return rate


def main() -> None:
    """Measure, print, write."""
    threads = torch.get_num_threads()
    rate = matmul_rate(threads)
    full, half = kernel(HEADS, torch.float32, threads), kernel(HEADS, torch.bfloat16, threads)
    one, all_threads = kernel(1, torch.float32, 1), kernel(1, torch.float32, threads)
    shares = {name: row["gflops"] / rate for name, row in full.items()}
    whole = {
        name: sum(part["min"] for part in rows.values())
        for name, rows in (("float32", full), ("bfloat16", half), ("one", one), ("all", all_threads))
    }
    print(f"matrix product {rate:.0f} GFLOP/s on {threads} threads")
    for name, row in full.items():
        print(
            f"{name:9s} {row['min'] * 1e3:6.1f} ms  {row['gflops']:4.0f} GFLOP/s = {shares[name]:.0%} of it"
        )
    print(f"bfloat16  {whole['bfloat16'] * 1e3:6.1f} ms  {whole['float32'] / whole['bfloat16']:.2f}x float32")
    print(f"one head  {whole['all'] * 1e3:6.1f} ms  {whole['one'] / whole['all']:.2f}x one thread")
    common.write(
        common.dated("kernel"),
        {
            "setting": {"heads": HEADS, "dim": DIM, "window": WINDOW, "length": LENGTH, "threads": threads},
            "matmul_gflops": rate,
            "share_of_matmul": shares,
            "float32": full,
            "bfloat16": half,
            "one_head_one_thread": one,
            "one_head_all_threads": all_threads,
            "bfloat16_times_faster": whole["float32"] / whole["bfloat16"],
            "one_head_times_faster": whole["one"] / whole["all"],
            "mapformers": mf.__version__,
        },
    )


if __name__ == "__main__":
    main()
