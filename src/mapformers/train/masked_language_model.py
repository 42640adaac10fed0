"""The task masked-language-model: hidden bytes of a text, told from both sides (Devlin et al. 2019)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from mapformers.core.errors import require, require_known
from mapformers.models.losses import IGNORED
from mapformers.models.masked_lm import mask_tokens
from mapformers.tasks.corpus import load_corpus
from mapformers.train.language_model import LanguageModel
from mapformers.train.presets import Preset
from mapformers.train.shuffled import seed_of
from mapformers.train.task import Asked, Check, Feed, Prompt, Score, Task, refuse_language_options, table
from mapformers.train.windows import Windows

# As the language Perceiver of Jaegle et al. 2022 counts: six special tokens, then the bytes.
PAD, MASK, BYTES = 0, 3, 6
VOCABULARY = BYTES + 256
SHARE = 0.15  # of the bytes that are asked for
SPLITS = ("train", "valid", "test")
BATCH = 16


class Masked(Dataset[dict[str, Tensor]]):
    """Windows of a text with some bytes hidden; which ones follows from the place alone."""

    def __init__(self, windows: Windows, seed: int) -> None:
        self.windows, self.seed = windows, seed

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = self.windows[index]["input_ids"] + BYTES
        return hidden_bytes(tokens, seed_of(self.seed, index))


class MaskedLanguageModel(LanguageModel):
    """The data of a language model, asked otherwise."""

    score, unit, counted, loss = "bits_per_hidden_byte", "bits per hidden byte", "tokens", "task"

    def model_fields(self, preset: Preset, folder: Path | None) -> dict[str, Any]:
        """The vocabulary, and the length where positions are learned."""
        if preset.architecture == "perceiver":
            given = dict(preset.model.get("input") or {})
            size = {"vocab_size": VOCABULARY, "length": preset.data.context}
            return {"input": {**given, "kind": "text", **size}}
        fields = super().model_fields(preset, folder)
        return {**fields, "vocab_size": VOCABULARY, "pad_token_id": PAD, "causal": False}

    def feed(self, preset: Preset, folder: Path) -> Feed:
        """Windows of the training bytes with some of them hidden."""
        data, text = preset.data, load_corpus(folder).split("train")
        windows = Windows(text, data.context, preset.training.seed, data.record)
        return Feed(Masked(windows, preset.training.seed))

    def validate(self, model: nn.Module, preset: Preset, folder: Path) -> Check:
        """Bits for the hidden bytes of the validation split; the same ones every time."""
        bits, right, count = _judge(model, load_corpus(folder).split("valid"), preset)
        return Check(
            {self.score: bits, "accuracy": right},
            f"{bits:.3f} bits per hidden byte, {right:.3f} of {count:,} right",
        )

    def score_model(self, model: nn.Module, preset: Preset, folder: Path) -> Score:
        """Bits for the hidden bytes of the test split, beside counting bytes."""
        corpus = load_corpus(folder)
        bits, right, count = _judge(model, corpus.split("test"), preset)
        counts = np.bincount(corpus.split("train"), minlength=256) + 1.0
        asked = np.bincount(corpus.split("test"), minlength=256)
        unigram = float(-(asked * np.log2(counts / counts.sum())).sum() / asked.sum())
        return Score(
            {self.score: bits, "accuracy": right, "examples": count}, {"how often each byte occurs": unigram}
        )

    def assess(self, model: nn.Module, preset: Preset, folder: Path, asked: Asked) -> dict[str, Any]:
        """The same of a split of the run."""
        refuse_language_options(asked)
        require(
            asked.data in (None, preset.data.source),
            f"eval: --data must be that of the run, got {asked.data}; train a run on it",
        )
        split = asked.split or "test"
        require_known("eval", "--split", split, SPLITS)
        bits, right, count = _judge(model, load_corpus(folder).split(split), preset, asked)
        return {
            self.score: bits,
            "accuracy": right,
            "hidden": count,
            "source": preset.data.source,
            "split": split,
        }

    def line(self, result: dict[str, Any]) -> str:
        """One line."""
        return (
            f"{result[self.score]:.4f} bits per hidden byte, {result['accuracy']:.4f} of "
            f"{result['hidden']:,} right ({result['split']} of {result['source']}), step {result['step']:,}"
        )

    def summary(self, output: Path, results: dict[str, Any]) -> list[str]:
        """The model beside counting."""
        test = results["test"]
        rows = [(f"this model, step {results['step']:,}", test[self.score]), *results["baselines"].items()]
        return [
            f"bits for each of {test['examples']:,} hidden bytes:",
            *table(rows),
            f"report: {output / 'report.html'}",
            "next:",
            f"  mapformers eval {output} --json",
        ]

    def figures(self, loss: float) -> dict[str, float]:
        """Bits instead of nats."""
        return {self.score: loss / math.log(2)}

    def progress(self, loss: float) -> str:
        """Nats and bits."""
        return f"loss {loss:.3f}  {loss / math.log(2):.3f} bits/hidden byte"

    def generate(self, model: nn.Module, folder: Path, prompt: Prompt) -> None:
        """It writes nothing."""
        Task.generate(self, model, folder, prompt)


def hidden_bytes(tokens: Tensor, seed: int) -> dict[str, Tensor]:
    """input_ids and labels [n] of a window [n] of tokens, some of them hidden."""
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = mask_tokens(tokens, MASK, VOCABULARY, generator, SHARE)
    return {"input_ids": inputs, "labels": labels}


@torch.no_grad()
def _judge(
    model: Any, text: np.ndarray, preset: Preset, asked: Asked | None = None
) -> tuple[float, float, int]:
    """Bits per hidden byte, the share that is told right, and their number, over whole windows of a text."""
    context, device = min(preset.data.context, len(text)), next(model.parameters()).device
    starts = range(0, len(text) - context + 1, context)
    bits, right, count = 0.0, 0, 0
    for begin in range(0, len(starts), BATCH):
        part = starts[begin : begin + BATCH]
        rows = [
            hidden_bytes(
                torch.from_numpy(text[i : i + context].astype(np.int64)) + BYTES,
                seed_of(preset.training.seed, i),
            )
            for i in part
        ]
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        logits = model(input_ids=batch["input_ids"].to(device)).logits.float().cpu()
        hidden = batch["labels"] != IGNORED
        wanted, scores = batch["labels"][hidden], logits[hidden]
        bits += float(F.cross_entropy(scores, wanted, reduction="sum")) / math.log(2)
        right, count = right + int((scores.argmax(-1) == wanted).sum()), count + len(wanted)
        if asked is not None and asked.tick is not None:
            asked.tick((begin + len(part)) / len(starts))
    require(count > 0, "eval: the text must have hidden bytes, got none; give more data")
    return bits / count, right / count, count
