"""A run that takes a second: settings and text shared by the tests of training and of the command line."""

from pathlib import Path

import numpy as np

LAYERS = [
    {"attention": "band(window=8)"},
    {"attention": "routing(clusters=2, window=8):1 + band(window=8):1"},
]
SETTINGS = (
    "model.hidden_size=16",
    "model.num_attention_heads=2",
    "model.intermediate_size=32",
    f"model.layers={LAYERS}",
    "data.context=32",
    "data.batch=2",
    "data.valid_bytes=200",
    "data.test_bytes=400",
    "optimiser.warmup_steps=2",
    "training.max_steps=6",
    "training.eval_every=3",
    "training.save_every=2",
    "training.log_every=1",
)


def text(size: int = 6000, seed: int = 0) -> bytes:
    """Words drawn from a small vocabulary: learnable, and as long as asked for."""
    words = [b"def ", b"return ", b"import ", b"self.", b"value", b"(x)\n", b"    ", b"for i in range(n):\n"]
    draw = np.random.Generator(np.random.PCG64(seed))
    return b"".join(words[i] for i in draw.integers(0, len(words), size))[:size]


def write_text_file(folder: Path, size: int = 6000) -> Path:
    """A file of that text."""
    path = folder / "text.txt"
    path.write_bytes(text(size))
    return path


def command(source: Path, output: Path, *more: str) -> list[str]:
    """The arguments of a tiny `mapformers train`."""
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return ["train", "demo", "--data", str(source), "--output", str(output), *settings, *more]
