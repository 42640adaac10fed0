"""Clustered attention put into a trained model: its error against the number of clusters.

    OMP_NUM_THREADS=1 python benchmarks/clusters.py      # about two minutes

A small encoder (one band layer with positions, two layers of full attention) learns to fill in masked bytes
of the standard library. Then its full attention is replaced, without further training, by clustered and
improved_clustered attention of the same projections. Reported: the error of the attention outputs (Frobenius
norm, relative to full attention on the same inputs, mean of both layers) and bits per masked byte.
"""

import argparse
import copy
import math
import sysconfig
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import dated, write
from torch import Tensor, nn

import mapformers as mf
from mapformers.core.mechanism import Shape
from mapformers.models.config import MapformerConfig
from mapformers.models.stack import MapformerModel

MASK, VOCABULARY, HIDDEN, HEADS = 256, 257, 96, 4
SHARE = 0.15  # of the bytes that are masked
REPLACED = (1, 2)  # layers with full attention
TOP = 16


class Filler(nn.Module):
    """Bytes with gaps [B, N] to logits [B, N, 257]."""

    def __init__(self) -> None:
        super().__init__()
        full = {"attention": "full", "rotary": False}
        config = MapformerConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            num_attention_heads=HEADS,
            layers=[{"attention": "band(window=8)"}, full, full],
            causal=False,
        )
        self.encoder = MapformerModel(config)

    def forward(self, ids: Tensor) -> Tensor:
        return self.encoder(ids).last_hidden_state @ self.encoder.embed_tokens.weight.T

    def attention(self, layer: int) -> Any:
        """The attention module of a layer."""
        return self.encoder.layers[layer].block.attention


def text(limit: int) -> Tensor:
    """Bytes of the standard library's modules, in the order of their names."""
    found = b"".join(path.read_bytes() for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")))
    return torch.frombuffer(bytearray(found[:limit]), dtype=torch.uint8).long()


def batch(data: Tensor, rows: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Windows with gaps, the windows, and where the gaps are."""
    starts = torch.randint(len(data) - length, (rows,), generator=generator)
    whole = torch.stack([data[start : start + length] for start in starts.tolist()])
    gaps = torch.rand(whole.shape, generator=generator) < SHARE
    return whole.masked_fill(gaps, MASK), whole, gaps


def train(model: Filler, data: Tensor, options: argparse.Namespace) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(options.steps):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50, 2 * (1 - step / options.steps))
        ids, whole, gaps = batch(data, 16, options.length, generator)
        loss = F.cross_entropy(model(ids)[gaps], whole[gaps])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % 100 == 0:
            print(f"  step {step + 1}: {loss.item() / math.log(2):.3f} bits", flush=True)


def replaced(model: Filler, spec: str, options: dict[str, int]) -> Filler:
    """A copy with other attention in the layers of full attention."""
    other = copy.deepcopy(model)
    for layer in REPLACED:
        made = mf.mechanism(spec, **options)
        made.bind(Shape(HEADS, HEADS, HIDDEN // HEADS), torch.Generator().manual_seed(layer))
        other.attention(layer).mechanisms[0] = made.eval()
    return other


@torch.no_grad()
def compare(model: Filler, other: Filler, batches: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
    """Error of the attention outputs on the inputs that the whole model gives them, and bits per gap."""
    errors, bits = [], []
    for ids, whole, gaps in batches:
        hidden = model.encoder(ids, output_hidden_states=True).hidden_states
        for layer in REPLACED:
            x = model.encoder.layers[layer].block.attention_norm(hidden[layer])
            exact = model.attention(layer)(x)
            errors.append(float((other.attention(layer)(x) - exact).norm() / exact.norm()))
        bits.append(float(F.cross_entropy(other(ids)[gaps], whole[gaps])) / math.log(2))
    return {"error": sum(errors) / len(errors), "bits": sum(bits) / len(bits)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--clusters", default="4,8,16,32,64,128,256")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/<date>-clusters.json")
    options = parser.parse_args()
    begun, data = time.process_time(), text(2_000_000)
    held_out = data[-200_000:]
    model = Filler()
    train(model, data[:-200_000], options)
    model.eval()
    generator = torch.Generator().manual_seed(1)
    batches = [batch(held_out, 16, options.length, generator) for _ in range(4)]
    full = compare(model, model, batches)
    print(f"full attention: {full['bits']:.3f} bits per masked byte")
    rows: dict[str, dict[str, dict[str, float]]] = {"full": {"": full}}
    counts = [int(count) for count in options.clusters.split(",")]
    print(f"{'clusters':20}" + "".join(f"{count:>8}" for count in counts))
    for name, more in (("clustered", {}), ("improved_clustered", {"top": TOP})):
        rows[name] = {}
        for count in counts:
            rows[name][str(count)] = compare(
                model, replaced(model, name, {"clusters": count, **more}), batches
            )
        for what in ("error", "bits"):
            found = [rows[name][str(count)][what] for count in counts]
            print(f"{name if what == 'error' else '  bits':20}" + "".join(f"{x:8.3f}" for x in found))
    lines = {
        name: [[int(count), one["error"]] for count, one in rows[name].items()]
        for name in ("clustered", "improved_clustered")
    }
    chart = {"x": "clusters", "y": "relative error of attention", "log": "x", "lines": lines}
    settings = {"steps": options.steps, "length": options.length, "clusters": counts, "top": TOP}
    seconds = round(time.process_time() - begun, 1)
    output = options.output or dated("clusters")
    write(
        output,
        {
            "benchmark": "clusters",
            "settings": settings,
            "rows": rows,
            "cpu_seconds": seconds,
            "charts": [chart],
        },
    )
    print(f"written to {output}")


if __name__ == "__main__":
    main()
