"""Forward + backward of the attention mechanisms beside causal SDPA, alternated in one process.

    python benchmarks/speed.py                          # native kernel, about 4 minutes on 2 cores
    python benchmarks/speed.py --kernel torch           # the torch path, about 6 minutes
    python benchmarks/speed.py --lengths 1024,2048      # quicker
    python benchmarks/speed.py --peers                  # beside two published packages, if installed
    python benchmarks/speed.py --family sparse          # the sparse and content-based ones, about 8 minutes

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
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import common
import torch
import torch.nn.functional as F

import mapformers as mf
from mapformers import spec
from mapformers.core.mechanism import Mechanism
from mapformers.kernels.native.library import load, torch_kernels

HEADS, HEAD_DIM, WINDOW = 8, 64, 128
SDPA = {True: "causal SDPA", False: "bidirectional SDPA"}
LONGEST_FULL = 16384  # causal SDPA takes half a minute at twice that length


class Entry(NamedTuple):
    """A mechanism and the setting of `causal` under which it is measured."""

    mechanism: Mechanism
    causal: bool = True


def core(n: int) -> dict[str, str]:
    """Specs at length n; clusters hold about 256 tokens each."""
    clusters = max(2, n // 256)
    return {
        "band": f"band(window={WINDOW})",
        "routing, 1 cluster per query": f"routing(window={WINDOW}, clusters={clusters}, query_clusters=1)",
        "routing, 2 clusters per query": f"routing(window={WINDOW}, clusters={clusters})",
        "linear": "linear",
    }


def sparse(n: int) -> dict[str, str]:
    """Specs whose queries see about as many keys as the band's, on average; buckets hold about 256 tokens."""
    buckets = max(2, n // 256)
    return {
        "dilated": f"dilated(window={WINDOW}, dilation=2)",
        "block_local": f"block_local(block={2 * WINDOW})",
        "strided": "strided(stride=64)",
        "random": "random(count=2, block=64)",
        "longformer, 8 globals": f"longformer(window={WINDOW}, global_tokens=8)",
        "sparse_transformer, strided": "sparse_transformer(pattern=strided, stride=128)",
        "sparse_transformer, fixed": "sparse_transformer(pattern=fixed, stride=128, summary=8)",
        "bigbird": "bigbird(block=64, random=3)",
        "reformer, 1 round": f"reformer(buckets={buckets}, window={WINDOW}, rounds=1)",
        "reformer, 4 rounds": f"reformer(buckets={buckets}, window={WINDOW}, rounds=4)",
        "moba": "moba(block=64, top=2)",
    }


FAMILIES = {"core": core, "sparse": sparse}
family = "core"  # set by --family


def mechanisms(n: int) -> dict[str, Entry]:
    """What is measured at length n: causal where the card allows it."""
    made = {}
    for name, text in FAMILIES[family](n).items():
        (part,) = spec.parse(text)
        mechanism = mf.mechanism(part.name, **part.options)
        made[name] = Entry(mechanism, mechanism.card.causal == "strict")
    return made


def inputs(n: int, heads: int = HEADS) -> list[torch.Tensor]:
    """q, k, v and the gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, heads, n, HEAD_DIM, generator=generator) for _ in range(4)]
    return [x.requires_grad_() for x in tensors[:3]] + tensors[3:]


def check(n: int = 300) -> dict[str, float]:
    """Largest deviation from the dense definition, float32; raises above 1e-4."""
    q, k, v, _ = inputs(n)
    worst = {}
    for name, (mechanism, causal) in mechanisms(1024).items():
        with torch.no_grad():
            output = mf.attend(mechanism, q, k, v, causal=causal)
            difference = (output - mf.dense_weights(mechanism, q, k, causal=causal) @ v).abs().max()
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
    entries = mechanisms(n)
    for causal, name in SDPA.items():
        if n <= LONGEST_FULL and any(entry.causal == causal for entry in entries.values()):
            runs[name] = both(lambda c=causal: F.scaled_dot_product_attention(q, k, v, is_causal=c))
    for name, entry in entries.items():
        runs[name] = both(lambda e=entry: mf.attend(e.mechanism, q, k, v, causal=e.causal))
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
    """Seconds, alternated: every round runs every candidate once, each time in another order.

    What follows full attention pays for the pages that it gave back, so nothing may follow it always.
    """
    runs = runs_of(n) | (peers_of(n) if peers else {})
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(rounds + 1):
        for name in random.Random(repeat).sample(list(runs), len(runs)):
            start = time.perf_counter()
            runs[name]()
            if repeat:
                times[name].append(time.perf_counter() - start)
    result = {name: {"min": min(t), "median": statistics.median(t)} for name, t in times.items() if t}
    entries = mechanisms(n)
    for name in result:
        causal = entries[name].causal if name in entries else name != SDPA[False]
        if SDPA[causal] in result:
            result[name]["times_faster"] = result[SDPA[causal]]["min"] / result[name]["min"]
    return result


def peak_memory(name: str, n: int, kernel: str) -> float:
    """MB by which one forward + backward raises the peak of a fresh process."""
    folder = str(common.RESULTS.parent)
    program = f"import sys; sys.path.insert(0, {folder!r}); import speed; "
    program += f"speed.family = {family!r}; speed.print_peak({name!r}, {n}, {kernel!r})"
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
    parser.add_argument("--family", choices=tuple(FAMILIES), default="core")
    parser.add_argument("--peers", action="store_true", help="beside routing_transformer and local_attention")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    global family
    arguments = parse()
    family = arguments.family
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
