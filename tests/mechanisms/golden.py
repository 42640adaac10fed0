"""Golden files: outputs of the dense twin in float64 on four tokens, so that a change of the numbers shows.

Write them anew, after a change that is meant to move numbers:  python -m tests.mechanisms.golden
"""

import json
import os
from pathlib import Path

import torch
from torch import Tensor

import mapformers as mf
from mapformers.core.mechanism import Mechanism, Shape
from tests.contract import cases

FOLDER = Path(__file__).parent / "golden"
HEADS, N, DIM = 2, 4, 4


def numbers(shape: tuple[int, ...], start: int) -> Tensor:
    """Inputs that need no random generator: sines of counters."""
    count = torch.Size(shape).numel()
    return torch.sin(torch.arange(start, start + count, dtype=torch.float64) * 1.7).view(shape)


def built(text: str) -> Mechanism:
    """A mechanism whose parameters and buffers are sines too."""
    made = cases.build(text).bind(Shape(HEADS, HEADS, DIM)).double().eval()
    with torch.no_grad():
        for place, parameter in enumerate(made.parameters()):
            parameter.copy_(numbers(tuple(parameter.shape), 1000 * (place + 1)))
        for name, buffer in made.named_buffers():
            if name.endswith(("centroids", "rotations")):
                buffer.copy_(torch.nn.functional.normalize(numbers(tuple(buffer.shape), 77), dim=-1))
    return made


def outputs(text: str, causal: bool) -> Tensor:
    """[2 heads, 4 tokens, 4] the definition's output."""
    q, k, v = (numbers((1, HEADS, N, DIM), 100 * i) for i in range(3))
    return (mf.dense_weights(built(text), q, cases.share(text, q, k), causal=causal) @ v)[0]


def path_of(text: str) -> Path:
    """One file for each configuration."""
    name = "".join(c if c.isalnum() else "_" for c in text).strip("_")
    while "__" in name:
        name = name.replace("__", "_")
    return FOLDER / f"{name}.json"


def write() -> None:
    """All files, each written to a temporary name first."""
    FOLDER.mkdir(exist_ok=True)
    for text in cases.ALL:
        found = {
            "causal" if causal else "bidirectional": outputs(text, causal).tolist()
            for causal in cases.directions_of(text)
        }
        temporary = path_of(text).with_suffix(".tmp")
        temporary.write_text(json.dumps({"spec": text, "outputs": found}, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path_of(text))


if __name__ == "__main__":
    write()
