"""Decoding token by token: equal to the parallel form, and flat in time and memory.

python benchmarks/decode.py        # about 3 minutes on 2 cores
"""

import argparse
import statistics
import time

import common
import torch

import mapformers as mf

SPEC = "routing(clusters=16, window=128):4 + band(window=128):4"
DIM, HEADS = 256, 8


def layer(spec: str = SPEC) -> torch.nn.Module:
    """The layer that is decoded, in eval mode."""
    return mf.attention(spec, dim=DIM, heads=HEADS, causal=True, rotary=True, seed=0).eval()


def tokens(n: int) -> torch.Tensor:
    """[1, n, dim] random inputs."""
    return torch.randn(1, n, DIM, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def deviation(n: int) -> float:
    """Largest difference between n tokens decoded one by one and the parallel forward, float32."""
    attention, x = layer(), tokens(n)
    parallel, state, steps = attention(x), attention.init_state(1), []
    for t in range(n):
        y, state = attention.step(x[:, t : t + 1], state)
        steps.append(y)
    return float((torch.cat(steps, 1) - parallel).abs().max())


def state_bytes(value: object) -> int:
    """Bytes of all tensors in a decode state."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, list | tuple):
        return sum(state_bytes(item) for item in value)
    if hasattr(value, "__dict__"):
        return sum(state_bytes(item) for item in vars(value).values())
    return 0


@torch.no_grad()
def flatness(last: int, every: int) -> list[dict[str, float]]:
    """Median time per token and size of the state, window by window."""
    attention, x, rows = layer(), tokens(every), []
    state, times = attention.init_state(1), []
    for t in range(last):
        start = time.perf_counter()
        _, state = attention.step(x[:, t % every : t % every + 1], state)
        times.append(time.perf_counter() - start)
        if (t + 1) % every == 0:
            rows.append(
                {
                    "tokens": t + 1,
                    "milliseconds": statistics.median(times) * 1e3,
                    "state_mb": state_bytes(state) / 2**20,
                }
            )
            print(
                "token {tokens:6d}  {milliseconds:.2f} ms  state {state_mb:.2f} MB".format(**rows[-1]),
                flush=True,
            )
            times = []
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--equal", type=int, default=4096, help="tokens decoded and compared")
    parser.add_argument("--last", type=int, default=30000, help="tokens decoded for the times")
    parser.add_argument("--every", type=int, default=1000, help="tokens per row")
    arguments = parser.parse_args()
    worst = deviation(arguments.equal)
    print(f"{arguments.equal} tokens one by one against the parallel form: {worst:.1e}")
    rows = flatness(arguments.last, arguments.every)
    setting = {"spec": SPEC, "dim": DIM, "heads": HEADS, "batch": 1, "dtype": "float32", "rotary": True}
    common.write(
        common.dated("decode"),
        {"setting": setting, "deviation": worst, "tokens": arguments.equal, "rows": rows},
    )


if __name__ == "__main__":
    main()
