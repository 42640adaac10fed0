"""The task translation: one sentence to another, by bytes or tokens, scored by exact matches and BLEU."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mapformers.core.errors import require, require_known
from mapformers.tasks.corpus import FACTS, write_text
from mapformers.tasks.examples import Examples, load_examples
from mapformers.tasks.pairs import Pairs, read_pairs
from mapformers.tasks.tokens import Tokens
from mapformers.train.classification import facts_of
from mapformers.train.presets import Preset, preset_from
from mapformers.train.shuffled import Shuffled
from mapformers.train.task import Asked, Check, Feed, Prompt, Score, Task, refuse_language_options, table

GENERATED = 12_000  # pairs of the grammar, where the preset does not say
BATCH = 64  # of a validation
SPLITS = ("train", "valid", "test")
SHOWN = 3  # translations in the sample


class Translation(Task):
    """Whole sentences translated greedily."""

    score, unit, counted = "exact_match", "exact match", "pairs"

    def check(self, preset: Preset) -> None:
        """Nothing can be said before the data are read."""

    def write_data(self, preset: Preset, folder: Path) -> None:
        """The bytes of both sides of each split."""
        found, data = self._pairs(preset, preset.data.source), preset.data
        caps = {"train": data.train_examples, "valid": data.valid_examples, "test": data.test_examples}
        digest, splits, tokens = hashlib.sha256(), {}, Tokens.named(preset.data.tokenizer)
        folder.mkdir(parents=True)
        tokens.save(folder)
        for name in SPLITS:
            pairs = found.splits[name][: caps[name]]
            for side, place in (("source", 0), ("target", 1)):
                rows = [tokens.encode(pair[place]) for pair in pairs]
                self._check_lengths(preset, rows)
                examples = Examples.of(rows, [0] * len(rows))
                examples.save(folder / name / side)
                digest.update(examples.values.tobytes())
            splits[name] = {"examples": len(pairs)}
        facts = {
            "source": data.source,
            "rule": found.rule,
            "examples": sum(part["examples"] for part in splits.values()),
            "sha256": digest.hexdigest(),
            "python": platform.python_version(),
            "splits": splits,
        }
        write_text(folder / FACTS, json.dumps(facts, indent=1))

    def describe(self, folder: Path) -> str:
        """Source and sizes."""
        facts = facts_of(folder)
        sizes = ", ".join(f"{name} {part['examples']:,}" for name, part in facts["splits"].items())
        return (
            f"{facts['source']}: {facts['examples']:,} pairs ({sizes}); split: {facts['rule']}; SHA-256 "
            f"{facts['sha256'][:12]}"
        )

    def model_fields(self, preset: Preset, folder: Path | None) -> dict[str, Any]:
        """Bytes or tokens, and three more."""
        tokens = Tokens.named(preset.data.tokenizer) if folder is None else Tokens.load(folder)
        return {
            "vocab_size": tokens.vocabulary,
            "pad_token_id": tokens.pad,
            "decoder_start_token_id": tokens.start,
            "eos_token_id": tokens.end,
            "max_position_embeddings": preset.data.longest,
        }

    def feed(self, preset: Preset, folder: Path) -> Feed:
        """Pairs in an order of their own for each pass."""
        source, target, tokens = *_sides(folder / "train"), Tokens.load(folder)
        rows = Shuffled(len(source), lambda i: (source.row(i), target.row(i)), preset.training.seed)
        return Feed(rows, functools.partial(collate, tokens=tokens))

    def validate(self, model: nn.Module, preset: Preset, folder: Path) -> Check:
        """Exact matches, the loss, and a few translations."""
        made, wanted, sources = _translate_split(model, preset, folder / "valid")
        exact = _exact(made, wanted)
        shown = "\n".join(f"{a}\n  -> {b}" for a, b in zip(sources[:SHOWN], made[:SHOWN], strict=True))
        text = f"exact match {exact:.3f} on {len(made):,} validation pairs"
        return Check({"exact_match": exact}, text, {"prompt": "", "text": shown})

    def score_model(self, model: nn.Module, preset: Preset, folder: Path) -> Score:
        """Exact matches and BLEU beside copying the source."""
        made, wanted, sources = _translate_split(model, preset, folder / "test")
        test = {"exact_match": _exact(made, wanted), **_bleu(made, wanted), "examples": len(made)}
        return Score(test, {"the source as it is": _exact(sources, wanted)})

    def assess(self, model: nn.Module, preset: Preset, folder: Path, asked: Asked) -> dict[str, Any]:
        """The same on a split or on another pair of files."""
        refuse_language_options(asked)
        split, source = asked.split or "test", asked.data or preset.data.source
        require_known("eval", "--split", split, SPLITS)
        if source == preset.data.source:
            made, wanted, _ = _translate_split(model, preset, folder / split, asked)
        else:
            plain = preset.as_dict()
            plain["data"]["source"] = source
            other = preset_from(plain)
            with tempfile.TemporaryDirectory(prefix="mapformers-") as scratch:
                self.write_data(other, Path(scratch) / "data")
                made, wanted, _ = _translate_split(model, other, Path(scratch) / "data" / split, asked)
        return {
            "exact_match": _exact(made, wanted),
            **_bleu(made, wanted),
            "examples": len(made),
            "source": source,
            "split": split,
        }

    def line(self, result: dict[str, Any]) -> str:
        """One line."""
        bleu = f", BLEU {result['bleu']:.1f}" if "bleu" in result else ""
        return (
            f"exact match {result['exact_match']:.4f}{bleu} on {result['examples']:,} pairs "
            f"({result['split']} of {result['source']}), step {result['step']:,}"
        )

    def summary(self, output: Path, results: dict[str, Any]) -> list[str]:
        """The model beside copying."""
        test = results["test"]
        rows = [(f"this model, step {results['step']:,}", test["exact_match"]), *results["baselines"].items()]
        return [
            f"exact match on {test['examples']:,} held-out pairs:",
            *table(rows),
            *([f"BLEU {test['bleu']:.1f}"] if "bleu" in test else []),
            f"report: {output / 'report.html'}",
            "next:",
            f"  mapformers eval {output} --json",
            f'  mapformers generate {output} --prompt "the old dog sees a bird"',
        ]

    def generate(self, model: nn.Module, folder: Path, prompt: Prompt) -> None:
        """The translation of the prompt."""
        require(bool(prompt.text), "generate: --prompt must hold a sentence, got none; say what to translate")
        tokens = Tokens.load(folder)
        prompt.write("\n" + translate(model, [tokens.encode(prompt.text)], prompt.count, tokens)[0])

    def _pairs(self, preset: Preset, source: str) -> Pairs:
        data = preset.data
        asked = (data.train_examples, data.valid_examples, data.test_examples)
        # The parts of the splits are 8 : 1 : 1; a little more, so that each is full.
        made = GENERATED if None in asked else int(1.1 * max(asked[0] / 0.8, asked[1] / 0.1, asked[2] / 0.1))
        return read_pairs(source, made, preset.training.seed)

    def _check_lengths(self, preset: Preset, rows: list[np.ndarray]) -> None:
        longest, limit = max(map(len, rows)), preset.data.longest
        unit = "bytes" if preset.data.tokenizer is None else "tokens"
        require(
            longest <= limit,
            f"data: sentences must have at most data.longest={limit} {unit}, got {longest}; raise it",
        )


def collate(rows: list[tuple[np.ndarray, np.ndarray]], tokens: Tokens) -> dict[str, Tensor]:
    """input_ids and attention_mask [B, M] of the sources; labels [B, N] of the targets with their end."""
    source, mask = _padded([row for row, _ in rows], tokens.pad)
    labels, _ = _padded([np.append(row.astype(np.int64), tokens.end) for _, row in rows], -100)
    return {"input_ids": source, "attention_mask": mask, "labels": labels}


@torch.no_grad()
def translate(model: Any, rows: list[np.ndarray], most: int, tokens: Tokens) -> list[str]:
    """Sources to targets of at most `most` tokens, greedily."""
    device = next(model.parameters()).device
    source, mask = _padded(rows, tokens.pad)
    made = model.generate(
        source.to(device),
        attention_mask=mask.to(device),
        max_new_tokens=most,
        do_sample=False,
        num_beams=1,
    )
    texts = []
    for row in made[:, 1:].tolist():
        texts.append(tokens.decode(row[: row.index(tokens.end)] if tokens.end in row else row))
    return texts


def _padded(rows: list[np.ndarray], filler: int) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    values = np.full((len(rows), longest), filler, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for place, row in enumerate(rows):
        values[place, : len(row)], mask[place, : len(row)] = row, 1
    return torch.from_numpy(values), torch.from_numpy(mask)


def _sides(folder: Path) -> tuple[Examples, Examples]:
    return load_examples(folder / "source"), load_examples(folder / "target")


def _translate_split(
    model: nn.Module, preset: Preset, folder: Path, asked: Asked | None = None
) -> tuple[list[str], list[str], list[str]]:
    """Translations, targets and sources of a split; sentences of like lengths go together."""
    source, target, tokens = *_sides(folder), Tokens.load(folder.parent)
    order = np.argsort(np.diff(source.ends, prepend=0), kind="stable")
    made: dict[int, str] = {}
    most = target.longest() + 8  # a little more than any target, so that endless ones are cut
    for start in range(0, len(order), BATCH):
        part = [int(i) for i in order[start : start + BATCH]]
        made |= dict(zip(part, translate(model, [source.row(i) for i in part], most, tokens), strict=True))
        if asked is not None and asked.tick is not None:
            asked.tick(len(made) / len(order))
    wanted, sources = ([tokens.decode(side.row(i)) for i in range(len(side))] for side in (target, source))
    return [made[i] for i in range(len(order))], wanted, sources


def _exact(made: list[str], wanted: list[str]) -> float:
    return sum(a == b for a, b in zip(made, wanted, strict=True)) / len(wanted)


def _bleu(made: list[str], wanted: list[str]) -> dict[str, float]:
    """BLEU of the corpus (Papineni et al. 2002) through sacrebleu; nothing where that is not installed."""
    try:
        import sacrebleu
    except ImportError:
        return {}
    return {"bleu": float(sacrebleu.corpus_bleu(made, [wanted]).score)}
