"""How fast random features approach softmax: error against their number, for three ways to draw rows.

    OMP_NUM_THREADS=1 python benchmarks/features.py      # a few seconds

The error is that of the attention output over 64 keys (Frobenius norm, relative to the exact output), for
queries and keys of standard deviation --scale. Haar rows are those of the library; the raw ones are
orthogonal rows as LAPACK's QR leaves them, which the public codes use; independent rows are normal numbers.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from common import dated, summary, write
from torch import Tensor

from mapformers.mechanisms.linear.random_features import normal_rows, orthogonal_rows

DIM, TOKENS = 16, 64
Draw = Callable[[int, int, torch.Generator], Tensor]


def raw_rows(count: int, dim: int, generator: torch.Generator) -> Tensor:
    """Orthogonal rows without the correction of their signs."""
    blocks = -(-count // dim)
    q, _ = torch.linalg.qr(torch.randn(blocks, dim, dim, generator=generator))
    lengths = torch.randn(count, dim, generator=generator).norm(dim=-1, keepdim=True)
    return q.transpose(-1, -2).flatten(0, 1)[:count] * lengths


DRAWS: dict[str, tuple[Draw, bool]] = {
    "Haar": (orthogonal_rows, False),
    "Haar, two-sided": (orthogonal_rows, True),
    "independent": (normal_rows, False),
    "raw QR": (raw_rows, False),
}


def error(rows: Tensor, two_sided: bool, scale: float, seed: int) -> float:
    """Relative error of the output for one draw of queries, keys and values."""
    generator = torch.Generator().manual_seed(1000 + seed)
    q, k, v = (torch.randn(TOKENS, DIM, generator=generator, dtype=torch.float64) for _ in range(3))
    q, k, rows = q * scale, k * scale, rows.double()
    rows = torch.cat([rows, -rows]) if two_sided else rows
    phi_q, phi_k = (
        (x / DIM**0.25 @ rows.T - x.square().sum(-1, keepdim=True) / 2 / DIM**0.5).exp() for x in (q, k)
    )
    weights = phi_q @ phi_k.T
    estimate = weights @ v / weights.sum(-1, keepdim=True)
    exact = (q @ k.T / DIM**0.5).softmax(-1) @ v
    return float((estimate - exact).norm() / exact.norm())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", default="16,64,256,1024,4096,16384", help="numbers of random rows")
    parser.add_argument("--scale", type=float, default=0.3)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/<date>-features.json")
    options = parser.parse_args()
    counts = [int(count) for count in options.counts.split(",")]
    rows: dict[str, dict[str, dict[str, float]]] = {}
    print("relative error of the output\n" + f"{'rows':16}" + "".join(f"{count:>9,}" for count in counts))
    for name, (draw, two_sided) in DRAWS.items():
        rows[name] = {}
        for count in counts:
            errors = [
                error(draw(count, DIM, torch.Generator().manual_seed(seed)), two_sided, options.scale, seed)
                for seed in range(options.seeds)
            ]
            rows[name][str(count)] = summary(errors)
        print(f"{name:16}" + "".join(f"{rows[name][str(count)]['mean']:9.4f}" for count in counts))
    lines = {name: [[int(m), found["mean"]] for m, found in row.items()] for name, row in rows.items()}
    lines["m^-1/2"] = [[m, lines["Haar"][0][1] * (counts[0] / m) ** 0.5] for m in counts]
    chart = {"x": "random rows m", "y": "relative error of the output", "log": "both", "lines": lines}
    settings = {"counts": counts, "scale": options.scale, "seeds": options.seeds}
    output = options.output or dated("features")
    write(output, {"benchmark": "features", "settings": settings, "rows": rows, "charts": [chart]})
    print(f"written to {output}")


if __name__ == "__main__":
    main()
