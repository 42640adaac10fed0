"""The task answers: a causal model reads a generated sequence and says a token where one is asked for."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mapformers.core.errors import require, require_known
from mapformers.models.losses import IGNORED
from mapformers.tasks.copying import Copying, SelectiveCopying
from mapformers.tasks.corpus import FACTS, write_text
from mapformers.tasks.duplication import Duplication
from mapformers.tasks.generated import options_of
from mapformers.tasks.induction import Induction
from mapformers.tasks.passkey import Passkey
from mapformers.tasks.recall import Recall
from mapformers.train.classification import facts_of
from mapformers.train.presets import Preset
from mapformers.train.shuffled import Fresh, seed_of
from mapformers.train.task import Asked, Check, Feed, Score, Task, refuse_language_options, table

GENERATORS: dict[str, type] = {
    "recall": Recall,
    "duplication": Duplication,
    "copying": Copying,
    "selective_copying": SelectiveCopying,
    "induction": Induction,
    "passkey": Passkey,
}
SPLITS = {"valid": 1, "test": 2}  # numbers that the seeds of their batches are made of
BATCH = 64


class Answers(Task):
    """Accuracy over the places that ask, and the share of sequences in which all answers are right."""

    score, unit, loss = "accuracy", "accuracy", "next_token"

    def check(self, preset: Preset) -> None:
        """The generator and its options."""
        generator_of(preset)

    def write_data(self, preset: Preset, folder: Path) -> None:
        """Nothing but what is generated: every batch follows from the seed."""
        folder.mkdir(parents=True)
        facts = {
            "source": preset.data.source,
            "rule": "fresh examples in every step; valid and test have seeds of their own",
            "options": str(generator_of(preset)),
            "sha256": f"follows from the seed {preset.training.seed}",
            "python": platform.python_version(),
            "splits": {
                "valid": {"examples": preset.data.valid_examples},
                "test": {"examples": preset.data.test_examples},
            },
        }
        write_text(folder / FACTS, json.dumps(facts, indent=1))

    def describe(self, folder: Path) -> str:
        """The generator."""
        facts = facts_of(folder)
        return f"{facts['options']}: {facts['rule']}"

    def model_fields(self, preset: Preset, folder: Path | None) -> dict[str, Any]:
        """The vocabulary and the length."""
        task = generator_of(preset)
        return {
            "vocab_size": getattr(task, "vocabulary", 256),
            "max_position_embeddings": task.length,
        }

    def feed(self, preset: Preset, folder: Path) -> Feed:
        """One fresh example after the other."""
        task = generator_of(preset)

        def make(seed: int) -> dict[str, Tensor]:
            batch = labelled(task.batch(1, torch.Generator().manual_seed(seed)))
            return {name: x[0] for name, x in batch.items()}

        return Feed(Fresh(make, preset.training.seed))

    def validate(self, model: nn.Module, preset: Preset, folder: Path) -> Check:
        """Accuracy on examples that are the same every time."""
        right, whole = _judge(model, preset, "valid")
        text = f"accuracy {right:.3f}, whole sequences {whole:.3f}"
        return Check({"accuracy": right, "exact_match": whole}, text)

    def score_model(self, model: nn.Module, preset: Preset, folder: Path) -> Score:
        """Accuracy beside that of guessing among the answers there are."""
        right, whole = _judge(model, preset, "test")
        answers = torch.cat([labels[labels != IGNORED] for _, labels in _batches(preset, "test")])
        frequent = float(torch.bincount(answers).max() / len(answers))
        test = {"accuracy": right, "exact_match": whole, "examples": preset.data.test_examples}
        return Score(test, {"most frequent answer": frequent})

    def assess(self, model: nn.Module, preset: Preset, folder: Path, asked: Asked) -> dict[str, Any]:
        """The same on the validation or the test examples."""
        refuse_language_options(asked)
        require(
            asked.data in (None, preset.data.source),
            f"eval: --data must be left out for a generator, got {asked.data}; train another run for it",
        )
        split = asked.split or "test"
        require_known("eval", "--split", split, SPLITS)
        right, whole = _judge(model, preset, split, asked)
        count = preset.data.valid_examples if split == "valid" else preset.data.test_examples
        return {
            "accuracy": right,
            "exact_match": whole,
            "examples": count,
            "source": preset.data.source,
            "split": split,
        }

    def line(self, result: dict[str, Any]) -> str:
        """One line."""
        return (
            f"accuracy {result['accuracy']:.4f}, whole sequences {result['exact_match']:.4f} on "
            f"{result['examples']:,} examples ({result['split']} of {result['source']}), step "
            f"{result['step']:,}"
        )

    def summary(self, output: Path, results: dict[str, Any]) -> list[str]:
        """The model beside guessing."""
        test = results["test"]
        rows = [(f"this model, step {results['step']:,}", test["accuracy"]), *results["baselines"].items()]
        return [
            f"accuracy of answers in {test['examples']:,} sequences:",
            *table(rows),
            f"report: {output / 'report.html'}",
            "next:",
            f"  mapformers eval {output} --json",
        ]


def generator_of(preset: Preset) -> Any:
    """The generator of a preset. Raises MapformersError for options that it does not know."""
    source = preset.data.source
    return options_of(source, GENERATORS[source], preset.data.options)


def labelled(batch: Any) -> dict[str, Tensor]:
    """input_ids [B, N], and labels [B, N] that are -100 but where an answer is asked for.

    A causal model predicts the token behind a place, so the answer to a question at place i stands at i + 1.
    """
    tokens = batch.tokens
    place = batch.place.expand(len(tokens), -1)
    labels = torch.full((len(tokens), tokens.shape[1] + 1), IGNORED)
    asked = batch.target != IGNORED
    index = torch.where(asked, place + 1, tokens.shape[1])
    # The last column takes what is not asked; a question at the very end makes the sequence one longer.
    values = torch.where(asked, batch.target, labels.new_tensor(IGNORED))
    ends = bool((index[asked] == tokens.shape[1]).any())
    labels = labels.scatter(1, index, values)
    if ends:
        tokens = torch.cat([tokens, tokens[:, -1:]], 1)
        return {"input_ids": tokens, "labels": labels}
    return {"input_ids": tokens, "labels": labels[:, :-1]}


def _batches(preset: Preset, split: str) -> Any:
    """(tokens, labels) of a split, a batch at a time."""
    task = generator_of(preset)
    count = preset.data.valid_examples if split == "valid" else preset.data.test_examples
    for start in range(0, count, BATCH):
        seed = seed_of(preset.training.seed, SPLITS[split], start)
        batch = labelled(task.batch(min(BATCH, count - start), torch.Generator().manual_seed(seed)))
        yield batch["input_ids"], batch["labels"]


def _judge(model: Any, preset: Preset, split: str, asked: Asked | None = None) -> tuple[float, float]:
    """Share of right answers, and of sequences without a wrong one, on a split."""
    total = preset.data.valid_examples if split == "valid" else preset.data.test_examples
    tick = None if asked is None else asked.tick
    return accuracy_of(model, _batches(preset, split), None if tick is None else lambda n: tick(n / total))


@torch.no_grad()
def accuracy_of(
    model: Any, batches: Iterable[tuple[Tensor, Tensor]], seen_so_far: Callable[[int], object] | None = None
) -> tuple[float, float]:
    """Share of right answers, and of sequences without a wrong one, over (input_ids, labels) [B, N].

    `seen_so_far` is told the number of sequences after each batch.
    """
    device = next(model.parameters()).device
    right = total = whole = seen = 0
    for tokens, labels in batches:
        made = model(input_ids=tokens.to(device), use_cache=False).logits[:, :-1].argmax(-1).cpu()
        target = labels[:, 1:]
        hit, counts = (made == target), target != IGNORED
        right, total = right + int(hit[counts].sum()), total + int(counts.sum())
        whole, seen = whole + int((hit | ~counts).all(1).sum()), seen + len(tokens)
        if seen_so_far is not None:
            seen_so_far(seen)
    return right / total, whole / seen
