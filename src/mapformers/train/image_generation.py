"""The task image-generation: images value by value, scored in bits per dimension."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mapformers.core.errors import require, require_known
from mapformers.models.image_generation import LEVELS, START
from mapformers.tasks.examples import Examples, load_examples
from mapformers.tasks.labelled import read_labelled
from mapformers.train.classification import facts_of, write_labelled
from mapformers.train.presets import Preset
from mapformers.train.shuffled import Shuffled
from mapformers.train.task import Asked, Check, Feed, Prompt, Score, Task, refuse_language_options, table

SPLITS = ("train", "valid", "test")
BATCH = 16  # images of a validation at once
SHADES = " .:-=+*#%@"


class ImageGeneration(Task):
    """Bits per dimension: the mean number of bits for one value of one pixel."""

    score, unit, counted, loss = "bits_per_dim", "bits per dimension", "images", "next_token"

    def check(self, preset: Preset) -> None:
        """Images they must be."""
        require(
            preset.data.kind == "image" and not preset.data.permute and preset.data.longest is None,
            "data: image-generation needs data.kind=image without permute and longest, got others; drop them",
        )

    def write_data(self, preset: Preset, folder: Path) -> None:
        """The images of each split."""
        write_labelled(read_labelled("image", preset.data.source, preset.data.size), preset, folder)

    def describe(self, folder: Path) -> str:
        """Source, shape and sizes."""
        facts = facts_of(folder)
        height, width = facts["shape"]
        sizes = ", ".join(f"{name} {part['examples']:,}" for name, part in facts["splits"].items())
        return (
            f"{facts['source']}: {facts['examples']:,} images of {height} x {width} x {facts['channels']} "
            f"({sizes}); split: {facts['rule']}; SHA-256 {facts['sha256'][:12]}"
        )

    def model_fields(self, preset: Preset, folder: Path | None) -> dict[str, Any]:
        """The shape of the images."""
        facts = None if folder is None else facts_of(folder)
        shape = [28, 28, 1] if facts is None else [*facts["shape"], facts["channels"]]
        return {
            "vocab_size": LEVELS + 1,
            "positions": "axial",
            "image_shape": shape,
            "max_position_embeddings": 1 + math.prod(shape),
        }

    def feed(self, preset: Preset, folder: Path) -> Feed:
        """Images in an order of their own for each pass."""
        examples = load_examples(folder / "train")

        def get(index: int) -> dict[str, Tensor]:
            tokens = image_tokens(examples, index)
            return {"input_ids": tokens, "labels": tokens}

        return Feed(Shuffled(len(examples), get, preset.training.seed))

    def validate(self, model: nn.Module, preset: Preset, folder: Path) -> Check:
        """Bits per dimension on the validation images, and a drawing."""
        bits, count = _bits(model, load_examples(folder / "valid"))
        drawn = _drawings(model, 2, 0, 1.0)
        return Check(
            {"bits_per_dim": bits}, f"{bits:.3f} bits/dim on {count:,} images", {"prompt": "", "text": drawn}
        )

    def score_model(self, model: nn.Module, preset: Preset, folder: Path) -> Score:
        """Bits per dimension beside those of counting values, anywhere or at their place."""
        train, test = load_examples(folder / "train"), load_examples(folder / "test")
        bits, count = _bits(model, test)
        return Score({"bits_per_dim": bits, "examples": count}, _counted(train, test))

    def assess(self, model: nn.Module, preset: Preset, folder: Path, asked: Asked) -> dict[str, Any]:
        """Bits per dimension of a split of the run."""
        refuse_language_options(asked)
        require(
            asked.data in (None, preset.data.source),
            f"eval: --data must be that of the run, got {asked.data}; images of another shape do not fit",
        )
        split = asked.split or "test"
        require_known("eval", "--split", split, SPLITS)
        bits, count = _bits(model, load_examples(folder / split), asked)
        return {"bits_per_dim": bits, "images": count, "source": preset.data.source, "split": split}

    def line(self, result: dict[str, Any]) -> str:
        """One line."""
        return (
            f"{result['bits_per_dim']:.4f} bits per dimension on {result['images']:,} images "
            f"({result['split']} of {result['source']}), step {result['step']:,}"
        )

    def summary(self, output: Path, results: dict[str, Any]) -> list[str]:
        """The model beside counting."""
        test = results["test"]
        rows = [
            (f"this model, step {results['step']:,}", test["bits_per_dim"]),
            *results["baselines"].items(),
        ]
        return [
            f"bits per dimension of {test['examples']:,} held-out images:",
            *table(rows),
            f"report: {output / 'report.html'}",
            "next:",
            f"  mapformers eval {output} --json",
            f"  mapformers generate {output} --seed 1",
        ]

    def figures(self, loss: float) -> dict[str, float]:
        """Bits instead of nats."""
        return {"bits_per_dim": loss / math.log(2)}

    def progress(self, loss: float) -> str:
        """Nats and bits."""
        return f"loss {loss:.3f}  {loss / math.log(2):.3f} bits/dim"

    def generate(self, model: nn.Module, folder: Path, prompt: Prompt) -> None:
        """An image as text, brighter = denser. It takes no prompt."""
        require(not prompt.text, "generate: images take no --prompt, got one; leave it out")
        prompt.write(_drawings(model, 1, prompt.seed, prompt.temperature))


def image_tokens(examples: Examples, index: int) -> Tensor:
    """[1 + n] the start and the values of an image, 0 .. 255."""
    values = np.rint(examples.row(index).reshape(-1) * (LEVELS - 1)).clip(0, LEVELS - 1)
    return torch.from_numpy(np.concatenate([[START], values]).astype(np.int64))


@torch.no_grad()
def _bits(model: Any, examples: Examples, asked: Asked | None = None) -> tuple[float, int]:
    """Mean bits for a value, and the number of images."""
    total, count, device = 0.0, len(examples), next(model.parameters()).device
    for start in range(0, count, BATCH):
        part = range(start, min(start + BATCH, count))
        tokens = torch.stack([image_tokens(examples, i) for i in part]).to(device)
        total += float(model(input_ids=tokens, labels=tokens, use_cache=False).loss) * len(part)
        if asked is not None and asked.tick is not None:
            asked.tick((start + len(part)) / count)
    return total / count / math.log(2), count


def _counted(train: Examples, test: Examples) -> dict[str, float]:
    """Bits per dimension of two tables of counts with one more for each value."""
    seen, asked = (
        torch.stack([image_tokens(part, i)[1:] for i in range(len(part))]) for part in (train, test)
    )  # [images, n]
    anywhere = torch.bincount(seen.flatten(), minlength=LEVELS).double() + 1
    anywhere = -(anywhere / anywhere.sum()).log2()
    there = torch.ones(seen.shape[1], LEVELS, dtype=torch.float64)
    there.scatter_add_(1, seen.mT, torch.ones_like(seen.mT, dtype=torch.float64))
    there = -(there / there.sum(1, keepdim=True)).log2()
    return {
        "values anywhere": float(anywhere[asked].mean()),
        "values at their place": float(there.gather(1, asked.mT).mean()),
    }


def _drawings(model: Any, count: int, seed: int, temperature: float) -> str:
    images = model.draw(count, torch.Generator().manual_seed(seed), temperature).float().mean(-1)
    shade = (images / (LEVELS - 1) * (len(SHADES) - 1)).round().long()
    return "\n\n".join(
        "\n".join("".join(2 * SHADES[x] for x in row) for row in one) for one in shade.tolist()
    )
