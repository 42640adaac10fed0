"""One point of the benchmark, measured in a process of its own: python -m mapformers.measure.point JSON

Order: peak memory first, while nothing else has run; then the comparison with the dense definition, and on a
mismatch nothing more; then times, alternated with torch's SDPA of the same direction.
"""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import mapformers as mf
from mapformers import spec
from mapformers.core.errors import require
from mapformers.core.mechanism import Mechanism
from mapformers.kernels.native.library import torch_kernels

HEADS, HEAD_DIM = 8, 64
DIM = HEADS * HEAD_DIM
SHORT = 300  # tokens of the comparison with the definition; no multiple of any block
COUNTED = 1024  # most tokens at which FLOPs are counted
PREFIX, STEPS = 4096, 24  # decoding: tokens before the first step, and steps
LONGEST = 30.0  # seconds that a forward and backward may take; what is predicted to take longer is left out
AT_ONCE = 1.0  # seconds; what takes longer needs no warm-up, and is run twice
ENOUGH, MORE = 0.5, 8  # seconds in all; what took less is run again, in up to so many times the rounds
# Largest deviation from the definition, relative to the largest output.
TOLERANCES = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 3e-2}
Run = Callable[[], object]


@dataclass(frozen=True)
class Point:
    """What is measured: a spec or the name of a peer, tokens, data type, kernels, and rounds of times."""

    spec: str
    length: int
    dtype: str = "float32"
    kernel: str = "native"
    rounds: int = 5
    peer: bool = False

    def as_json(self) -> str:
        """For the command line of the process."""
        return json.dumps(asdict(self))


def measure(point: Point) -> dict[str, Any]:
    """The figures of a point, as plain data; `left_out` says why there are none, `red` that it is wrong."""
    if point.peer:
        return _measure_peer(point)
    mechanism = _mechanism(point.spec)
    causal = mechanism.card.causal == "strict"
    found: dict[str, Any] = {"spec": point.spec, "causal": causal}
    predicted = _predicted(point, mechanism, causal)
    if predicted > LONGEST:
        return {**found, "left_out": f"a pass would take about {predicted:.0f} s"}
    q, k, v, grad = inputs(point.length, point.dtype)
    core = _core(mechanism, q, k, v, grad, causal)
    found["peak_mb"] = peak_of(core)
    found["deviation"] = deviation(_mechanism(point.spec), point.dtype, causal)
    if not found["deviation"] <= TOLERANCES[point.dtype]:
        return {**found, "red": f"deviates from its definition by {found['deviation']:.1e}"}
    found["flops_ratio"] = flops_ratio(point, causal)
    runs = {
        "core": core,
        "core_forward": _core_forward(mechanism, q, k, v, causal),
        **sdpa(q, k, v, grad, causal),
    }
    runs["layer"] = _layer(point, causal)
    times = alternate(runs, point.rounds)
    for name in ("core", "core_forward"):
        times[name]["times_faster"] = times[f"sdpa_{name}"]["min"] / times[name]["min"]
    return {**found, **times, **_decode(point, causal)}


def inputs(n: int, dtype: str) -> list[Tensor]:
    """q, k, v [1, HEADS, n, HEAD_DIM] and the gradient of the output, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    kind = getattr(torch, dtype)
    made = [torch.randn(1, HEADS, n, HEAD_DIM, generator=generator).to(kind) for _ in range(4)]
    return [x.requires_grad_() for x in made[:3]] + made[3:]


def peak_of(run: Run) -> float | None:
    """MB by which a run raises the peak of this process; None where the system does not say."""
    before = _high_water()
    run()
    after = _high_water()
    return None if before is None or after is None else (after - before) / 1024


def deviation(mechanism: Mechanism, dtype: str, causal: bool) -> float:
    """Largest difference from the dense definition at SHORT tokens, relative to the largest output."""
    q, k, v, _ = inputs(SHORT, dtype)
    with torch.no_grad():
        output = mf.attend(mechanism, q, k, v, causal=causal).double()
        wanted = mf.dense_weights(mechanism, q, k, causal=causal).double() @ v.double()
    return float((output - wanted).abs().max() / wanted.abs().max())


def flops_ratio(point: Point, causal: bool) -> float | None:
    """FLOPs that torch's products of a forward take beside those of the cost model."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    n = min(point.length, COUNTED)
    mechanism = _mechanism(point.spec)
    q, k, v, _ = inputs(n, "float32")
    counter = FlopCounterMode(display=False)
    with torch_kernels(), sdpa_kernel(SDPBackend.MATH), torch.no_grad(), counter:
        mf.attend(mechanism, q, k, v, causal=causal)
    stated = mechanism.cost(1, HEADS, n, HEAD_DIM, causal).flops
    return counter.get_total_flops() / stated if stated else None


def sdpa(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, causal: bool) -> dict[str, Run]:
    """torch's full attention: forward, and forward and backward."""

    def forward() -> Tensor:
        with torch.no_grad():
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    def both() -> object:
        output = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return torch.autograd.grad(output, (q, k, v), grad)

    return {"sdpa_core_forward": forward, "sdpa_core": both}


def alternate(runs: dict[str, Run], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of each run, minimum and median; every round runs each once, in another order each time.

    What follows full attention pays for the pages that it gave back, so nothing follows it always. Short runs
    are warmed up, and repeated more often than long ones.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(MORE * rounds + 1):
        going = [name for name, taken in times.items() if not _is_enough(taken, repeat, rounds)]
        for name in random.Random(repeat).sample(going, len(going)):
            start = time.perf_counter()
            runs[name]()
            seconds = time.perf_counter() - start
            if repeat or seconds > AT_ONCE:
                times[name].append(seconds)
    return {
        name: {"min": min(t), "median": statistics.median(t), "runs": len(t)} for name, t in times.items()
    }


def _is_enough(taken: list[float], repeat: int, rounds: int) -> bool:
    """Whether a run with these times needs no further round."""
    if repeat > 1 and min(taken) > AT_ONCE:
        return True
    return repeat > rounds and sum(taken) >= ENOUGH


def _mechanism(text: str) -> Mechanism:
    (part,) = spec.parse(text)
    return mf.mechanism(part.name, **part.options)


def _predicted(point: Point, mechanism: Mechanism, causal: bool) -> float:
    """Seconds of a forward and backward, from one at fewer tokens and the cost model."""
    few = min(point.length, 2048)
    if few == point.length:
        return 0.0
    small = _mechanism(point.spec)
    q, k, v, grad = inputs(few, point.dtype)
    run = _core(small, q, k, v, grad, causal)
    run()
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    flops = [small.cost(1, HEADS, n, HEAD_DIM, causal).flops for n in (few, point.length)]
    return seconds * flops[1] / max(flops[0], 1.0)


def _core(m: Mechanism, q: Tensor, k: Tensor, v: Tensor, grad: Tensor, causal: bool) -> Run:
    return lambda: torch.autograd.grad(mf.attend(m, q, k, v, causal=causal), (q, k, v), grad)


def _core_forward(m: Mechanism, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Run:
    def forward() -> Tensor:
        with torch.no_grad():
            return mf.attend(m, q, k, v, causal=causal)

    return forward


def _layer(point: Point, causal: bool) -> Run:
    """A whole layer with its projections, forward and backward, on [1, n, DIM]."""
    kind = getattr(torch, point.dtype)
    layer = mf.attention(point.spec, DIM, HEADS, causal=causal).to(kind).eval()
    x = torch.randn(1, point.length, DIM, generator=torch.Generator().manual_seed(0)).to(kind)
    x.requires_grad_()
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
    return lambda: torch.autograd.grad(layer(x).sum(), wanted, allow_unused=True)


@torch.no_grad()
def _decode(point: Point, causal: bool) -> dict[str, Any]:
    """Seconds per token of a layer's `step` behind a prefix that was read in one go."""
    from mapformers.core.errors import MapformersError

    kind = getattr(torch, point.dtype)
    try:
        layer = mf.attention(point.spec, DIM, HEADS, causal=causal).to(kind).eval()
        state = layer.init_state(1)
    except MapformersError as error:
        return {"decode": None, "decode_reason": str(error).partition(",")[0]}
    prefix = min(point.length, PREFIX) - STEPS
    x = torch.randn(1, prefix + STEPS, DIM, generator=torch.Generator().manual_seed(0)).to(kind)
    times = []
    _, state = layer.step(x[:, :prefix], state)
    for t in range(prefix, prefix + STEPS):
        start = time.perf_counter()
        _, state = layer.step(x[:, t : t + 1], state)
        times.append(time.perf_counter() - start)
    return {"decode": {"min": min(times), "median": statistics.median(times), "after": prefix}}


def _measure_peer(point: Point) -> dict[str, Any]:
    """A package of others: peak memory and times, alternated with SDPA."""
    from mapformers.measure.bench_peers import make_peer

    q, k, v, grad = inputs(point.length, point.dtype)
    made = make_peer(point.spec, q, k, v, grad)
    found = {
        "spec": point.spec,
        "peer": True,
        "causal": made.causal,
        "takes": made.takes,
        "version": made.version,
    }
    found["peak_mb"] = peak_of(made.run)
    times = alternate({"core": made.run, **sdpa(q, k, v, grad, made.causal)}, point.rounds)
    times["core"]["times_faster"] = times["sdpa_core"]["min"] / times["core"]["min"]
    return {**found, **times}


def _high_water() -> int | None:
    """Peak resident size of this process in KB. Not ru_maxrss: that begins at the parent's peak."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return None


def main() -> None:
    """Measure the point of the command line and print its figures as the last line."""
    require(len(sys.argv) == 2, f"point: one JSON argument is needed, got {len(sys.argv) - 1}; run bench")
    point = Point(**json.loads(sys.argv[1]))
    with torch_kernels() if point.kernel == "torch" else contextlib.nullcontext():
        # The buffers of the first call of anything are not those of a mechanism.
        q, k, v, grad = inputs(64, point.dtype)
        for run in sdpa(q, k, v, grad, True).values():
            run()
        print(json.dumps(measure(point)))


if __name__ == "__main__":
    main()
