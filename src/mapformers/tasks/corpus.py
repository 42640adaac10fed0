"""Byte streams on disk: one memory-mapped file per split, with the facts that make a number comparable.

A folder holds train.bin, valid.bin, test.bin (and english.bin for stdlib) and facts.json, which is written
last.
"""

import contextlib
import hashlib
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mapformers.core.errors import MapformersError, require, require_known
from mapformers.tasks.source import SourcePlan

FACTS = "facts.json"


@dataclass(frozen=True)
class Corpus:
    """The splits of one source as files in a folder, and its facts (files, bytes, SHA-256, Python
    version).
    """

    folder: Path
    facts: dict[str, Any]

    def split(self, name: str) -> np.ndarray:
        """[n] uint8, memory-mapped; `all` is every split but english, in order."""
        splits = self.facts["splits"]
        if name == "all":
            parts = [self.split(part) for part in ("train", "valid", "test") if part in splits]
            return np.concatenate(parts)
        require_known("data", "split", name, [*splits, "all"])
        if splits[name]["bytes"] == 0:
            return np.zeros(0, dtype=np.uint8)
        return np.memmap(self.folder / f"{name}.bin", dtype=np.uint8, mode="r")

    def describe(self) -> str:
        """One line for people."""
        facts = self.facts
        files = f"{facts['files']:,} files, " if facts["files"] else ""
        sizes = ", ".join(f"{name} {part['bytes']:,}" for name, part in facts["splits"].items())
        return (
            f"{facts['source']}: {files}{facts['bytes']:,} bytes ({sizes}); split: {facts['rule']}; "
            f"SHA-256 {facts['sha256'][:12]}; Python {facts['python']}"
        )


def check_size(plan: SourcePlan, context: int) -> None:
    """Raise MapformersError when the training split is known to be shorter than one context."""
    size = plan.size("train")
    if size is not None:
        _require_context(plan.source, size, context)


def check_corpus(corpus: Corpus, context: int) -> None:
    """Raise MapformersError unless a model with this context can be trained, validated and tested on the
    corpus.
    """
    source, splits = corpus.facts["source"], corpus.facts["splits"]
    _require_context(source, splits["train"]["bytes"], context)
    for name in ("valid", "test"):
        require(
            splits[name]["bytes"] >= 2,
            f"data: the {name} split of {source} must have 2 bytes or more, got {splits[name]['bytes']}; "
            "give more data",
        )


def write_corpus(
    plan: SourcePlan, folder: Path, caps: dict[str, int | None], names: tuple[str, ...] = ()
) -> Corpus:
    """Copy the splits `names` (none named = all) into `folder` (created), at most `caps[split]` bytes of
    each.

    Each file appears whole or not at all. Raises OSError when the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole, splits = hashlib.sha256(), {}
    for name in names or plan.names:
        require_known("data", f"split of {plan.source}", name, plan.names)
        size, digest = _write_stream(plan, name, folder / f"{name}.bin", caps.get(name))
        splits[name] = {"bytes": size, "sha256": digest}
        if name != "english":
            whole.update(digest.encode())
    facts = {
        "source": plan.source,
        "rule": plan.rule,
        "files": plan.files,
        "bytes": sum(part["bytes"] for name, part in splits.items() if name != "english"),
        "sha256": whole.hexdigest(),
        "python": platform.python_version(),
        "splits": splits,
    }
    write_text(folder / FACTS, json.dumps(facts, indent=1))
    return Corpus(folder, facts)


def load_corpus(folder: Path) -> Corpus:
    """A corpus written before. Raises MapformersError when a file is missing or has another size than it
    had.
    """
    try:
        facts = json.loads((folder / FACTS).read_text())
        sizes = {name: part["bytes"] for name, part in facts["splits"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise MapformersError(
            f"data: {folder / FACTS} must be readable, got none or damaged; start a new run"
        ) from None
    for name, size in sizes.items():
        path = folder / f"{name}.bin"
        found = path.stat().st_size if path.exists() else -1
        require(
            found == size,
            f"data: {path} must have {size} bytes, got {found}; the run folder was changed, start anew",
        )
    return Corpus(folder, facts)


def write_text(path: Path, text: str) -> None:
    """Write a small file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_stream(plan: SourcePlan, split: str, path: Path, cap: int | None) -> tuple[int, str]:
    """Copy one split; returns its size and SHA-256."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    size, digest = 0, hashlib.sha256()
    try:
        with temporary.open("wb") as file, contextlib.closing(plan.stream(split)) as chunks:
            for chunk in chunks:
                chunk = chunk if cap is None else chunk[: cap - size]
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                if cap is not None and size >= cap:
                    break
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return size, digest.hexdigest()


def _require_context(source: str, size: int, context: int) -> None:
    require(
        size >= context,
        f"data: the train split of {source} must be at least as long as the context ({context} bytes), got "
        f"{size}; "
        "give more data or --set data.context=N with a smaller N",
    )
