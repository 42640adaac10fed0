"""The task classification: one of a few classes for a text, an image, a sound or a set of points."""

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

from mapformers.core.errors import MapformersError, require, require_known
from mapformers.tasks.corpus import FACTS, write_text
from mapformers.tasks.examples import Examples, load_examples
from mapformers.tasks.generated import GENERATORS, generate_labelled
from mapformers.tasks.labelled import Labelled, read_labelled
from mapformers.train.presets import Preset
from mapformers.train.shuffled import Shuffled
from mapformers.train.task import Asked, Check, Feed, Score, Task, refuse_language_options, table

SPLITS = ("train", "valid", "test")
BATCH = 64  # of a validation


class Classification(Task):
    """Accuracy over held-out examples."""

    score, unit = "accuracy", "accuracy"

    def check(self, preset: Preset) -> None:
        """Nothing can be said before the data are read."""

    def write_data(self, preset: Preset, folder: Path) -> None:
        """The three splits as arrays, and what they are."""
        write_labelled(_read(preset, preset.data.source), preset, folder)

    def describe(self, folder: Path) -> str:
        """Source, classes and sizes."""
        facts = facts_of(folder)
        sizes = ", ".join(f"{name} {part['examples']:,}" for name, part in facts["splits"].items())
        return (
            f"{facts['source']}: {len(facts['classes'])} classes, {facts['examples']:,} examples ({sizes}); "
            f"split: {facts['rule']}; SHA-256 {facts['sha256'][:12]}{_loss_of_cutting(facts)}"
        )

    def model_fields(self, preset: Preset, folder: Path | None) -> dict[str, Any]:
        """Classes by name, and the adapter of what is read where the preset names none."""
        facts = None if folder is None else facts_of(folder)
        names = facts["classes"] if facts else [str(i) for i in range(preset.data.classes or 2)]
        fields: dict[str, Any] = {"id2label": dict(enumerate(names))}
        fields["label2id"] = {name: number for number, name in enumerate(names)}
        if preset.architecture == "mapformer":
            fields["causal"] = False
        adapter = _adapter(preset, facts)
        if adapter is not None:
            fields["input"] = adapter
        return fields

    def feed(self, preset: Preset, folder: Path) -> Feed:
        """Examples in an order of their own for each pass."""
        examples = load_examples(folder / "train")
        order = order_of(preset, examples)

        def get(index: int) -> tuple[np.ndarray, int]:
            row = examples.row(index)
            return (row if order is None else row[order]), int(examples.labels[index])

        return Feed(Shuffled(len(examples), get, preset.training.seed), collate)

    def validate(self, model: nn.Module, preset: Preset, folder: Path) -> Check:
        """Accuracy and loss on the validation split."""
        right, loss, count = _judge(model, preset, load_examples(folder / "valid"))
        return Check(
            {"accuracy": right, "loss": loss}, f"accuracy {right:.3f} on {count:,} validation examples"
        )

    def score_model(self, model: nn.Module, preset: Preset, folder: Path) -> Score:
        """Accuracy beside that of the most frequent class."""
        test = load_examples(folder / "test")
        right, loss, count = _judge(model, preset, test)
        frequent = np.bincount(load_examples(folder / "train").labels).argmax()
        guess = float((test.labels == frequent).mean())
        return Score({"accuracy": right, "loss": loss, "examples": count}, {"most frequent class": guess})

    def assess(self, model: nn.Module, preset: Preset, folder: Path, asked: Asked) -> dict[str, Any]:
        """Accuracy on a split, or on another source whose classes are those of the run."""
        refuse_language_options(asked)
        split, source = asked.split or "test", asked.data or preset.data.source
        require_known("eval", "--split", split, SPLITS)
        if source == preset.data.source:
            examples = load_examples(folder / split)
        else:
            other, held = _read(preset, source), facts_of(folder)["classes"]
            require(
                list(other.classes) == held,
                f"eval: {source} must have the classes of the run ({', '.join(held[:5])} ..), got "
                f"{', '.join(other.classes[:5])} ..; give data of the same kind",
            )
            with tempfile.TemporaryDirectory(prefix="mapformers-") as scratch:
                write_labelled(other, preset, Path(scratch) / "data")
                examples = load_examples(Path(scratch) / "data" / split)
        right, loss, count = _judge(model, preset, examples, asked)
        return {"accuracy": right, "loss": loss, "examples": count, "source": source, "split": split}

    def line(self, result: dict[str, Any]) -> str:
        """One line."""
        return (
            f"accuracy {result['accuracy']:.4f} on {result['examples']:,} examples ({result['split']} of "
            f"{result['source']}), loss {result['loss']:.4f}, step {result['step']:,}"
        )

    def summary(self, output: Path, results: dict[str, Any]) -> list[str]:
        """The model beside guessing."""
        test = results["test"]
        rows = [(f"this model, step {results['step']:,}", test["accuracy"]), *results["baselines"].items()]
        return [
            f"accuracy on {test['examples']:,} held-out examples:",
            *table(rows),
            f"report: {output / 'report.html'}",
            "next:",
            f"  mapformers eval {output} --json",
        ]


def collate(rows: list[tuple[np.ndarray, int]]) -> dict[str, Tensor]:
    """A batch: bytes as `input_ids` [B, n], numbers as `inputs` [B, n, C]; shorter rows are padded."""
    longest = max(len(row) for row, _ in rows)
    first = rows[0][0]
    is_text = np.issubdtype(first.dtype, np.integer)
    values = np.zeros((len(rows), longest, *first.shape[1:]), dtype=np.int64 if is_text else np.float32)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for place, (row, _) in enumerate(rows):
        values[place, : len(row)], mask[place, : len(row)] = row, 1
    batch = {"input_ids" if is_text else "inputs": torch.from_numpy(values)}
    if not mask.all():
        batch["attention_mask"] = torch.from_numpy(mask)
    batch["labels"] = torch.tensor([label for _, label in rows])
    return batch


def write_labelled(found: Labelled, preset: Preset, folder: Path) -> None:
    """The splits of a labelled source, cut as the preset says, and facts.json."""
    data = preset.data
    require(
        data.classes in (None, len(found.classes)),
        f"data: {data.source} must have data.classes={data.classes} classes, got {len(found.classes)}; leave "
        "classes out",
    )
    caps = {"train": data.train_examples, "valid": data.valid_examples, "test": data.test_examples}
    digest, splits = hashlib.sha256(), {}
    for name in SPLITS:
        examples, cut = _cut(found.splits[name], caps[name], data.longest, preset.training.seed)
        require(
            len(examples) > 0,
            f"data: the {name} split of {data.source} must hold examples, got none; give more data",
        )
        examples.save(folder / name)
        digest.update(np.ascontiguousarray(examples.values).tobytes())
        digest.update(examples.labels.tobytes())
        splits[name] = {"examples": len(examples), "longest": examples.longest(), "cut": cut}
    facts = {
        "source": data.source,
        "kind": data.kind,
        "rule": found.rule,
        "classes": list(found.classes),
        "shape": None if found.shape is None else list(found.shape),
        "channels": int(np.prod(found.splits["train"].values.shape[1:])),
        "examples": sum(part["examples"] for part in splits.values()),
        "sha256": digest.hexdigest(),
        "python": platform.python_version(),
        "splits": splits,
    }
    write_text(folder / FACTS, json.dumps(facts, indent=1))


@functools.lru_cache(maxsize=4)
def _facts(path: Path, changed: int) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise MapformersError(
            f"data: {path} must be readable, got none or damaged; start a new run"
        ) from None


def facts_of(folder: Path) -> dict[str, Any]:
    """facts.json of the data of a run. Raises MapformersError where it is missing or damaged."""
    path = folder / FACTS
    return _facts(path, path.stat().st_mtime_ns if path.exists() else 0)


def _read(preset: Preset, source: str) -> Labelled:
    data = preset.data
    if source in GENERATORS:
        counts = (data.train_examples or 10_000, data.valid_examples or 500, data.test_examples or 1_000)
        return generate_labelled(source, data.options, counts, preset.training.seed)
    require(
        not data.options,
        f"data: options belong to a generator ({', '.join(GENERATORS)}), got {data.options} for {source}; "
        "leave them out",
    )
    return read_labelled(data.kind, source, data.size)


def _cut(examples: Examples, most: int | None, longest: int | None, seed: int) -> tuple[Examples, int]:
    """At most so many examples, drawn fairly, none longer than `longest`; and how many were longer."""
    count = len(examples)
    chosen = np.arange(count)
    if most is not None and most < count:
        draw = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, 1 << 20))))
        chosen = np.sort(draw.permutation(count)[:most])
    elif longest is None or examples.longest() <= longest:
        return examples, 0
    rows = [examples.row(int(i)) for i in chosen]
    longer = sum(longest is not None and len(row) > longest for row in rows)
    return Examples.of([row[:longest] for row in rows], examples.labels[chosen]), longer


def _loss_of_cutting(facts: dict[str, Any]) -> str:
    """What `data.longest` took away, in words. What decides the class may have stood there."""
    parts = facts["splits"].values()
    cut, longest = sum(part["cut"] for part in parts), max(part["longest"] for part in parts)
    if cut == 0:
        return ""
    return f"\n{cut:,} examples were cut to data.longest={longest:,}; raise it to keep them whole"


def _adapter(preset: Preset, facts: dict[str, Any] | None) -> dict[str, Any] | None:
    """The input adapter for the data: the one of the preset with sizes from the data filled in."""
    given = dict(preset.model.get("input") or {})
    kind = preset.data.kind
    if kind == "text" and preset.architecture == "mapformer" and not given:
        return None  # tokens are embedded by the model itself
    if kind == "text":
        length = 1024 if facts is None else max(part["longest"] for part in facts["splits"].values())
        return {"kind": "text", "vocab_size": 256, "length": preset.data.longest or length, **given}
    if kind == "points":
        return {"kind": "points", "channels": 0, "coordinates": facts["channels"] if facts else 3, **given}
    shape = [28, 28] if kind == "image" else [16_000]
    if facts is not None:
        longest = max(part["longest"] for part in facts["splits"].values())
        shape = facts["shape"] or [longest]
    patch = given.get("patch")
    if patch is not None and len(shape) == 1:
        shape = [-(-shape[0] // patch[0]) * patch[0]]
    return {"kind": "grid", "shape": shape, "channels": facts["channels"] if facts else 1, **given}


def order_of(preset: Preset, examples: Examples) -> np.ndarray | None:
    """A fixed order of the places of every row, where the preset asks for one."""
    if not preset.data.permute:
        return None
    lengths = np.diff(examples.ends, prepend=0)
    require(
        bool((lengths == lengths[0]).all()),
        "data: permute needs rows of one length, got others; set data.permute=false",
    )
    draw = np.random.Generator(np.random.Philox(np.random.SeedSequence((preset.training.seed, 2))))
    return draw.permutation(int(lengths[0]))


@torch.no_grad()
def _judge(
    model: Any, preset: Preset, examples: Examples, asked: Asked | None = None
) -> tuple[float, float, int]:
    """Accuracy, mean loss and number of examples; rows of like lengths go together."""
    order, device = order_of(preset, examples), next(model.parameters()).device
    lengths = np.diff(examples.ends, prepend=0)
    places = np.argsort(lengths, kind="stable")
    right, loss, done = 0, 0.0, 0
    for start in range(0, len(places), BATCH):
        rows = [(examples.row(int(i)), int(examples.labels[i])) for i in places[start : start + BATCH]]
        rows = rows if order is None else [(row[order], label) for row, label in rows]
        batch = {name: x.to(device) for name, x in collate(rows).items()}
        out = model(**batch)
        right += int((out.logits.argmax(-1) == batch["labels"]).sum())
        loss += float(out.loss) * len(rows)
        done += len(rows)
        if asked is not None and asked.tick is not None:
            asked.tick(done / len(places))
    return right / done, loss / done, done
