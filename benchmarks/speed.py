"""Forward + backward of the attention mechanisms beside causal SDPA, alternated in one process.

    python benchmarks/speed.py                          # native kernel, about 4 minutes on 2 cores
    python benchmarks/speed.py --kernel torch           # the torch path, about 6 minutes
    python benchmarks/speed.py --lengths 1024,2048      # quicker
    python benchmarks/speed.py --peers                  # beside two published packages, if installed

Before any time is taken, each mechanism is compared with its dense definition at a short length; a mismatch
ends the run. Peak memory is measured in a fresh process for each point.
"""

import argparse
import contextlib
import math
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import common
import torch
import torch.nn.functional as F

import mapformers as mf
from mapformers.core.mechanism import Mechanism
from mapformers.kernels.native.library import load, torch_kernels

HEADS, HEAD_DIM, WINDOW = 8, 64, 128
LONGEST_FULL = 16384  # causal SDPA takes half a minute at twice that length


def mechanisms(n: int) -> dict[str, Mechanism]:
    """What is measured at length n; clusters hold about 256 tokens each."""
    clusters = max(2, n // 256)
    return {
        "band": mf.mechanism("band", window=WINDOW),
        "routing, 1 cluster per query": mf.mechanism(
            "routing", window=WINDOW, clusters=clusters, query_clusters=1
        ),
        "routing, 2 clusters per query": mf.mechanism("routing", window=WINDOW, clusters=clusters),
        "linear": mf.mechanism("linear"),
    }


def inputs(n: int, heads: int = HEADS) -> list[torch.Tensor]:
    """q, k, v and the gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, heads, n, HEAD_DIM, generator=generator) for _ in range(4)]
    return [x.requires_grad_() for x in tensors[:3]] + tensors[3:]


def check(n: int = 300) -> dict[str, float]:
    """Largest deviation from the dense definition, float32; raises above 1e-4."""
    q, k, v, _ = inputs(n)
    worst = {}
    for name, mechanism in mechanisms(1024).items():
        with torch.no_grad():
            output = mf.attend(mechanism, q, k, v, causal=True)
            difference = (output - mf.dense_weights(mechanism, q, k, causal=True) @ v).abs().max()
        worst[name] = float(difference)
        if not worst[name] < 1e-4:
            raise SystemExit(f"{name}: deviates by {worst[name]:.1e} from its definition; no time is taken")
    return worst


def runs_of(n: int) -> dict[str, Callable[[], object]]:
    """One forward + backward each."""
    q, k, v, grad = inputs(n)

    def both(attention: Callable[[], torch.Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(attention(), (q, k, v), grad)

    runs = {}
    if n <= LONGEST_FULL:
        runs["causal SDPA"] = both(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    for name, mechanism in mechanisms(n).items():
        runs[name] = both(lambda mechanism=mechanism: mf.attend(mechanism, q, k, v, causal=True))
    return runs


def peers_of(n: int) -> dict[str, Callable[[], object]]:
    """Two packages on the same q, k, v: window 128, or clusters of 256 tokens, in all heads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from local_attention import LocalAttention
        from routing_transformer.routing_transformer import KmeansAttention
    q, k, v, grad = inputs(n)
    window = min(WINDOW, n)
    local = LocalAttention(window_size=window, causal=True, look_backward=1, autopad=True, dim=HEAD_DIM)
    # Its windows hold 2 x 128 tokens, of which a query sees its cluster's: as many pairs as a window of 128.
    routing = KmeansAttention(max(1, n // 256), min(256, n), HEADS, HEAD_DIM, causal=True)
    return {
        "local_attention": lambda: torch.autograd.grad(local(q, k, v), (q, k, v), grad),
        "routing_transformer": lambda: torch.autograd.grad(
            routing(q, k, v)[0], (q, k, v), grad, allow_unused=True
        ),
    }


def measure(n: int, rounds: int, peers: bool = False) -> dict[str, dict[str, float]]:
    """Seconds, alternated: every round runs every candidate once."""
    runs = runs_of(n) | (peers_of(n) if peers else {})
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat:
                times[name].append(time.perf_counter() - start)
    result = {name: {"min": min(t), "median": statistics.median(t)} for name, t in times.items() if t}
    if "causal SDPA" in result:
        for name in result:
            result[name]["times_faster"] = result["causal SDPA"]["min"] / result[name]["min"]
    return result


def peak_memory(name: str, n: int, kernel: str) -> float:
    """MB by which one forward + backward raises the peak of a fresh process."""
    folder = str(common.RESULTS.parent)
    program = f"import sys; sys.path.insert(0, {folder!r}); import speed; "
    program += f"speed.print_peak({name!r}, {n}, {kernel!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(done.stdout)


def print_peak(name: str, n: int, kernel: str) -> None:
    """Run in the fresh process."""
    with torch_kernels() if kernel == "torch" else contextlib.nullcontext():
        warm, run = runs_of(256)[name], runs_of(n)[name]
        warm()
        before = _high_water()
        run()
        print((_high_water() - before) / 1024)


def tensors_mb(n: int) -> float:
    """q, k, v, the output, and their gradients."""
    return 8 * HEADS * n * HEAD_DIM * 4 / 2**20


def _high_water() -> int:
    """Peak resident size of this process in KB. Not ru_maxrss: that begins at the parent's peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise SystemExit("speed: peak memory needs /proc/self/status; run on Linux")


def exponent(low: float, high: float, ratio: float) -> float:
    """p in cost ~ n^p between two lengths."""
    return math.log(high / low) / math.log(ratio)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", default="300,1024,4096,8192,16384,32768,65536", help="comma-separated")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each")
    parser.add_argument("--kernel", choices=("native", "torch"), default="native")
    parser.add_argument("--peers", action="store_true", help="beside routing_transformer and local_attention")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    arguments = parse()
    if arguments.kernel == "native" and load().library is None:
        raise SystemExit(f"no native kernel: {load().reason}; use --kernel torch")
    with torch_kernels() if arguments.kernel == "torch" else contextlib.nullcontext():
        study(arguments)


def study(arguments: argparse.Namespace) -> None:
    lengths = [int(x) for x in arguments.lengths.split(",")]
    deviation = check()
    results, memory = {}, {}
    for n in lengths:
        results[n] = measure(n, arguments.rounds, arguments.peers)
        memory[n] = {name: peak_memory(name, n, arguments.kernel) for name in mechanisms(n)}
        for name, row in results[n].items():
            faster = f"{row['times_faster']:6.1f}x" if "times_faster" in row else "      -"
            room = f"{memory[n][name]:7.0f} MB" if name in memory[n] else ""
            print(f"n={n:6d}  {name:30s} {row['min'] * 1e3:8.1f} ms {faster} {room}", flush=True)
    growth = {name: growth_of(name, lengths, results, memory) for name in mechanisms(lengths[0])}
    setting = {
        "batch": 1,
        "heads": HEADS,
        "head_dim": HEAD_DIM,
        "window": WINDOW,
        "dtype": "float32",
        "kernel": arguments.kernel,
    }
    tensors = {n: tensors_mb(n) for n in lengths}
    name = "speed" if arguments.kernel == "native" else "speed-torch"
    common.write(
        common.dated(name + ("-peers" if arguments.peers else "")),
        {
            "setting": setting,
            "deviation": deviation,
            "seconds": results,
            "peak_mb": memory,
            "tensors_mb": tensors,
            "growth": growth,
        },
    )


def growth_of(
    name: str,
    lengths: list[int],
    results: dict[int, dict[str, dict[str, float]]],
    memory: dict[int, dict[str, float]],
) -> dict[str, float]:
    """Exponents of time and memory from 8,192 (or the shortest) to the longest length."""
    low, high = (8192 if 8192 in lengths else lengths[0]), lengths[-1]
    if low == high:
        return {}
    exponents = {
        "time": exponent(results[low][name]["min"], results[high][name]["min"], high / low),
        "memory": exponent(memory[low][name], memory[high][name], high / low),
    }
    print(f"growth {low} to {high}: {name:30s} time {exponents['time']:.2f} memory {exponents['memory']:.2f}")
    return exponents


if __name__ == "__main__":
    main()
