"""The task language-model: bytes of a text, scored in bits per byte."""

from __future__ import annotations

import math
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from mapformers.core.errors import MapformersError, require, require_known
from mapformers.tasks.baselines import baselines
from mapformers.tasks.corpus import Corpus, check_corpus, check_size, load_corpus, write_corpus
from mapformers.tasks.source import plan_source
from mapformers.train.evaluate import bits_per_byte, prefix_only
from mapformers.train.generate import generate_bytes
from mapformers.train.presets import Preset
from mapformers.train.task import Asked, Check, Feed, Prompt, Score, Task
from mapformers.train.windows import Windows

ENGLISH_BYTES = 200_000
SPLITS = ("train", "valid", "test", "english", "all")
SAMPLE_BYTES = 160
PROMPT_BYTES = 48
POSITIONS = 256  # of the prefix-only check
BASELINES = {
    "unigram": "unigram: how often each byte occurs",
    "ngram": "order-5 n-gram (interpolated Witten-Bell)",
    "xz": "xz that has read the training bytes",
}


class LanguageModel(Task):
    """The next byte from those before."""

    score, unit, counted, loss = "bits_per_byte", "bits per byte", "tokens", "next_token"

    def check(self, preset: Preset) -> None:
        """The source must be there and long enough."""
        check_size(plan_source(preset.data.source), preset.data.context)

    def write_data(self, preset: Preset, folder: Path) -> None:
        """The bytes of each split."""
        data, plan = preset.data, plan_source(preset.data.source)
        check_size(plan, data.context)
        caps = {
            "train": data.train_bytes,
            "valid": data.valid_bytes,
            "test": data.test_bytes,
            "english": ENGLISH_BYTES,
        }
        check_corpus(write_corpus(plan, folder, caps), data.context)

    def describe(self, folder: Path) -> str:
        """Source, bytes and splits."""
        return load_corpus(folder).describe()

    def model_fields(self, preset: Preset, folder: Path | None) -> dict[str, Any]:
        """The length it is trained at."""
        return {"max_position_embeddings": preset.data.context}

    def feed(self, preset: Preset, folder: Path) -> Feed:
        """Windows of the training bytes."""
        data, text = preset.data, load_corpus(folder).split("train")
        return Feed(Windows(text, data.context, preset.training.seed, data.record))

    def validate(self, model: nn.Module, preset: Preset, folder: Path) -> Check:
        """Bits per byte, each byte in one window, and a sample."""
        text, context = load_corpus(folder).split("valid"), preset.data.context
        score = bits_per_byte(model, text, context, stride=context - 1)
        said = f"{score.bits_per_byte:.3f} bits/byte on {score.bytes:,} validation bytes"
        return Check({"bits_per_byte": score.bits_per_byte}, said, _sample(model, text, context))

    def score_model(self, model: nn.Module, preset: Preset, folder: Path) -> Score:
        """Bits per byte beside simple models, and decoding beside teacher forcing."""
        corpus, context = load_corpus(folder), preset.data.context
        test = corpus.split("test")
        score = bits_per_byte(model, test, context)
        prefix = prefix_only(model, test, min(POSITIONS, context, len(test) - 1))
        simple = baselines(corpus.split("train"), test).as_dict()
        return Score(asdict(score), simple, {"prefix": {**asdict(prefix), "agrees": prefix.agrees}})

    def assess(self, model: nn.Module, preset: Preset, folder: Path, asked: Asked) -> dict[str, Any]:
        """Bits per byte of a split or of another source; with `positions` by decoding as well."""
        if asked.split is not None:
            require_known("eval", "--split", asked.split, SPLITS)
        with tempfile.TemporaryDirectory(prefix="mapformers-") as scratch:
            corpus, split = _corpus(preset, folder, asked, Path(scratch))
            text = corpus.split(split)
            if asked.positions is not None:
                limit = len(text) - 1
                require(
                    0 < asked.positions <= limit,
                    f"eval: --prefix-only must lie in 1..{limit}, got {asked.positions}; change it",
                )
            score = bits_per_byte(model, text, preset.data.context, asked.stride, asked.tick)
            result = {
                **asdict(score),
                "source": corpus.facts["source"],
                "split": split,
                "sha256": corpus.facts["sha256"],
            }
            if asked.positions is not None:
                result |= _prefix(prefix_only(model, text, asked.positions))
        return result

    def line(self, result: dict[str, Any]) -> str:
        """One line, and one more about decoding."""
        lines = [
            f"{result['bits_per_byte']:.4f} bits per byte over {result['bytes']:,} bytes ({result['split']} "
            f"of {result['source']}), "
            f"context {result['context']:,}, stride {result['stride']:,}, step {result['step']:,}"
        ]
        if "positions" in result:
            lines.append(
                _agreement(result["prefix_only_bits_per_byte"], result["teacher_forced_on_those"], result)
            )
        return "\n".join(lines)

    def summary(self, output: Path, results: dict[str, Any]) -> list[str]:
        """The model beside simple ones."""
        test, prefix, scores = results["test"], results["prefix"], results["baselines"]
        return [
            f"held-out bits per byte, {test['bytes']:,} bytes, context {test['context']:,}, stride "
            f"{test['stride']:,}:",
            f"  this model, step {results['step']:<10,} {test['bits_per_byte']:7.3f}",
            f"  unigram                     {scores['unigram']:7.3f}",
            f"  order-5 n-gram              {scores['ngram']:7.3f}",
            f"  xz given the training bytes {scores['xz']:7.3f}",
            _agreement(prefix["prefix_only"], prefix["teacher_forced"], prefix),
            f"report: {output / 'report.html'}",
            "next:",
            f"  mapformers eval {output} --prefix-only 500",
            f'  mapformers generate {output} --prompt "def " --max-new-tokens 300',
        ]

    def figures(self, loss: float) -> dict[str, float]:
        """Bits instead of nats."""
        return {"bits_per_byte": loss / math.log(2)}

    def progress(self, loss: float) -> str:
        """Nats and bits."""
        return f"loss {loss:.3f}  {loss / math.log(2):.3f} bits/byte"

    def size(self, inputs: dict[str, Any]) -> int:
        """Bytes."""
        return int(inputs["input_ids"].numel())

    def generate(self, model: nn.Module, folder: Path, prompt: Prompt) -> None:
        """Bytes behind the prompt, as the model makes them."""
        generate_bytes(model, prompt.text, prompt.count, prompt.temperature, prompt.seed, prompt.write)


def _corpus(preset: Preset, folder: Path, asked: Asked, scratch: Path) -> tuple[Corpus, str]:
    """The bytes to score, and the name of their split."""
    data, split = asked.data, asked.split
    if data is None or data == preset.data.source:
        return load_corpus(folder), split or "test"
    split = split or ("test" if data == "stdlib" or data.startswith("hf:") else "all")
    plan = plan_source(data)
    names = tuple(name for name in plan.names if name != "english") if split == "all" else (split,)
    return write_corpus(plan, scratch, {}, names), split


def _sample(model: nn.Module, text: np.ndarray, context: int) -> dict[str, str] | None:
    """What the model makes of the first bytes of a text; None where it cannot decode."""
    prompt = bytes(text[:PROMPT_BYTES]).decode("utf-8", "replace")
    try:
        made = generate_bytes(model, prompt, min(SAMPLE_BYTES, context), temperature=0.7, seed=0)
    except MapformersError:
        return None
    return {"prompt": prompt, "text": made.decode("utf-8", "replace")}


def _prefix(score: Any) -> dict[str, Any]:
    return {
        "prefix_only_bits_per_byte": score.prefix_only,
        "teacher_forced_on_those": score.teacher_forced,
        "difference": score.difference,
        "largest_difference": score.largest_difference,
        "positions": score.positions,
        "method": score.method,
        "agrees": score.agrees,
    }


def _agreement(alone: float, forced: float, check: dict[str, Any]) -> str:
    verdict = "they agree" if check["agrees"] else "they do NOT agree: the model sees what it should not"
    return (
        f"prefix-only {alone:.5f}, teacher-forced {forced:.5f} on the first {check['positions']:,} "
        "positions: "
        f"difference {check['difference']:.1e}, {verdict}"
    )
