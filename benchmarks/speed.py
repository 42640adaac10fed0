"""Forward + backward of the attention mechanisms beside causal SDPA, alternated in one process.

    python benchmarks/speed.py                          # native kernel, about 4 minutes on 2 cores
    python benchmarks/speed.py --kernel torch           # the torch path, about 6 minutes
    python benchmarks/speed.py --lengths 1024,2048      # quicker
    python benchmarks/speed.py --peers                  # beside two published packages, if installed
    python benchmarks/speed.py --family sparse          # the sparse and content-based ones, about 8 minutes
    python benchmarks/speed.py --family compact         # feature maps, prototypes, compressed, low rank

Before any time is taken, each mechanism is compared with its dense definition at a short length; a mismatch
ends the run. Peak memory is measured in a fresh process for each point.
"""

import argparse
import contextlib
import math
import random
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import common
import torch
import torch.nn.functional as F
from families import (
    BLOCKS,
    FAMILIES,
    HEAD_DIM,
    HEADS,
    TWO_STEPS,
    WINDOW,
    Entry,
    Run,
    inputs,
    mechanisms,
    runs_of,
)

import mapformers as mf
from mapformers.kernels.native.library import load, torch_kernels

SDPA = {True: "causal SDPA", False: "bidirectional SDPA"}
MEMORY_FROM = 8192  # below, the buffers of the allocator are most of what a process takes
LONGEST_FULL = 16384  # causal SDPA takes half a minute at twice that length


def check(family: str, n: int = 300) -> dict[str, float]:
    """Largest deviation from the dense definition, float32; raises above 1e-4."""
    q, k, v, _ = inputs(n)
    worst = {}
    for name, (mechanism, causal) in mechanisms(family, 1024).items():
        with torch.no_grad():
            output = mf.attend(mechanism, q, k, v, causal=causal)
            difference = (output - mf.dense_weights(mechanism, q, k, causal=causal) @ v).abs().max()
        worst[name] = float(difference)
        if not worst[name] < 1e-4:
            raise SystemExit(f"{name}: deviates by {worst[name]:.1e} from its definition; no time is taken")
    return worst


def sdpa_of(n: int, entries: dict[str, Entry]) -> dict[str, Run]:
    """Full attention under every setting of `causal` that the entries have."""
    q, k, v, grad = inputs(n)

    def both(causal: bool) -> Run:
        return lambda: torch.autograd.grad(
            F.scaled_dot_product_attention(q, k, v, is_causal=causal), (q, k, v), grad
        )

    wanted = {entry.causal for entry in entries.values()} if n <= LONGEST_FULL else set()
    return {name: both(causal) for causal, name in SDPA.items() if causal in wanted}


def peers_of(n: int) -> dict[str, Run]:
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


def measure(family: str, n: int, rounds: int, peers: bool = False) -> dict[str, dict[str, float]]:
    """Seconds, alternated: every round runs every candidate once, each time in another order.

    What follows full attention pays for the pages that it gave back, so nothing may follow it always.
    """
    entries = mechanisms(family, n)
    runs = sdpa_of(n, entries) | runs_of(family, n) | (peers_of(n) if peers else {})
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(rounds + 1):
        for name in random.Random(repeat).sample(list(runs), len(runs)):
            start = time.perf_counter()
            runs[name]()
            if repeat:
                times[name].append(time.perf_counter() - start)
    result = {name: {"min": min(t), "median": statistics.median(t)} for name, t in times.items() if t}
    for name in result:
        two_steps = TWO_STEPS.get(family, {})
        causal = entries[name].causal if name in entries else name not in (SDPA[False], *two_steps)
        if SDPA[causal] in result and name not in BLOCKS[family]:
            result[name]["times_faster"] = result[SDPA[causal]]["min"] / result[name]["min"]
    return result


def peak_memory(family: str, name: str, n: int, kernel: str) -> float:
    """MB by which one forward + backward raises the peak of a fresh process."""
    folder = str(common.RESULTS.parent)
    program = f"import sys; sys.path.insert(0, {folder!r}); import speed; "
    program += f"speed.print_peak({family!r}, {name!r}, {n}, {kernel!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(done.stdout)


def print_peak(family: str, name: str, n: int, kernel: str) -> None:
    """Run in the fresh process."""
    with torch_kernels() if kernel == "torch" else contextlib.nullcontext():
        # Nothing else is made before the run: what it would leave behind could be used without being seen.
        warm, run = runs_of(family, 256, [name])[name], runs_of(family, n, [name])[name]
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
    parser.add_argument("--family", choices=tuple(FAMILIES), default="core")
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
    lengths, family = [int(x) for x in arguments.lengths.split(",")], arguments.family
    deviation = check(family)
    results, memory = {}, {}
    for n in lengths:
        results[n] = measure(family, n, arguments.rounds, arguments.peers)
        if n >= min(MEMORY_FROM, lengths[-1]):
            memory[n] = {
                name: peak_memory(family, name, n, arguments.kernel) for name in runs_of(family, 256)
            }
        for name, row in results[n].items():
            faster = f"{row['times_faster']:6.1f}x" if "times_faster" in row else "      -"
            room = f"{memory[n][name]:7.0f} MB" if name in memory.get(n, {}) else ""
            print(f"n={n:6d}  {name:30s} {row['min'] * 1e3:8.1f} ms {faster} {room}", flush=True)
    growth = {name: growth_of(name, lengths, results, memory) for name in runs_of(family, 256)}
    crossover = {name: crossover_of(name, results) for name in mechanisms(family, lengths[0])}
    setting = {
        "batch": 1,
        "heads": HEADS,
        "head_dim": HEAD_DIM,
        "window": WINDOW,
        "dtype": "float32",
        "kernel": arguments.kernel,
    }
    tensors = {n: tensors_mb(n) for n in lengths}
    marks = {"torch": arguments.kernel == "torch", family: family != "core", "peers": arguments.peers}
    common.write(
        common.dated("-".join(["speed", *(mark for mark, given in marks.items() if given)])),
        {
            "setting": setting,
            "deviation": deviation,
            "seconds": results,
            "peak_mb": memory,
            "tensors_mb": tensors,
            "growth": growth,
            "crossover": crossover,
        },
    )


def growth_of(
    name: str,
    lengths: list[int],
    results: dict[int, dict[str, dict[str, float]]],
    memory: dict[int, dict[str, float]],
) -> dict[str, float]:
    """Exponents of time and memory from the first length whose memory was measured to the longest."""
    low, high = min(memory), lengths[-1]
    if low == high:
        return {}
    exponents = {
        "time": exponent(results[low][name]["min"], results[high][name]["min"], high / low),
        "memory": exponent(max(1.0, memory[low][name]), max(1.0, memory[high][name]), high / low),
    }
    print(f"growth {low} to {high}: {name:30s} time {exponents['time']:.2f} memory {exponents['memory']:.2f}")
    return exponents


def crossover_of(name: str, results: dict[int, dict[str, dict[str, float]]]) -> float | None:
    """The length from which it is faster than full attention, between two measured ones; None = at none.

    0 when it is faster at the shortest one already.
    """
    lengths = [n for n in results if "times_faster" in results[n][name]]
    faster = [results[n][name]["times_faster"] for n in lengths]
    slower = [i for i, ratio in enumerate(faster) if ratio < 1]
    found: float | None = 0.0
    if slower and slower[-1] == len(lengths) - 1:
        found = None
    elif slower:
        i = slower[-1]  # straight between two points of log length and log ratio
        share = -math.log(faster[i]) / (math.log(faster[i + 1]) - math.log(faster[i]))
        found = lengths[i] * (lengths[i + 1] / lengths[i]) ** share
    told = "none" if found is None else f"{found:.0f}" if found else f"below {lengths[0]}" if lengths else "-"
    print(f"faster than full attention from: {name:30s} {told}")
    return found


if __name__ == "__main__":
    main()
