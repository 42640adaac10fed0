"""Checkpoints without pickles, and complete or not there at all.

A checkpoint folder holds config.json, model.safetensors, optimizer.safetensors, rng.<rank>.safetensors,
trainer_state.json and, written last, manifest.json with the size and SHA-256 of each file. A folder without
its manifest was cut off and is ignored.
"""

import hashlib
import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mapformers.core.errors import MapformersError, require
from mapformers.tasks.corpus import write_text

MANIFEST = "manifest.json"
_FOLDER = re.compile(r"^checkpoint-(\d+)$")


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every complete checkpoint of a run, oldest first."""
    found = []
    for folder in run.iterdir() if run.is_dir() else ():
        match = _FOLDER.match(folder.name)
        if match and (folder / MANIFEST).is_file():
            found.append((int(match.group(1)), folder))
    return sorted(found)


def remove_incomplete(run: Path) -> list[str]:
    """Delete checkpoint folders that were cut off; returns their names."""
    cut_off = [f for f in run.iterdir() if _FOLDER.match(f.name) and not (f / MANIFEST).is_file()]
    for folder in cut_off:
        shutil.rmtree(folder)
    return [folder.name for folder in cut_off]


def complete(folder: Path) -> None:
    """Flush every file of a checkpoint to the disk and write its manifest."""
    files = {}
    for path in sorted(path for path in folder.iterdir() if path.name != MANIFEST):
        with path.open("rb") as file:
            files[path.name] = {
                "bytes": path.stat().st_size,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
            os.fsync(file.fileno())
    write_text(folder / MANIFEST, json.dumps({"format": 1, "files": files}, indent=1))


def verify(folder: Path) -> None:
    """Raise MapformersError unless every file of the checkpoint is what its manifest says."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        for name, fact in files.items():
            path = folder / name
            require(
                path.name == name and path.is_file(),
                f"checkpoint: {folder} must hold {name}, got no such file; delete the folder to use an "
                "older one",
            )
            with path.open("rb") as file:
                same = hashlib.file_digest(file, "sha256").hexdigest() == fact["sha256"]
            require(
                same,
                f"checkpoint: {path} must be as it was written, got a damaged file; "
                f"delete {folder.name} to use an older one",
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, MapformersError):
            raise
        raise MapformersError(
            f"checkpoint: {folder / MANIFEST} must be readable, got {type(error).__name__}; "
            f"delete {folder.name} to use an older one"
        ) from None


def save_optimizer(path: Path, optimizer: Any, scheduler: Any) -> None:
    """The state of both as one safetensors file: tensors as tensors, the rest as JSON."""
    state = optimizer.state_dict()
    tensors, plain = {}, {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.detach().contiguous().clone()
            else:
                plain[f"{index}.{name}"] = value
    facts = {"groups": state["param_groups"], "plain": plain, "scheduler": scheduler.state_dict()}
    save_file(tensors, path, metadata={"facts": json.dumps(facts)})


def load_optimizer(path: Path, optimizer: Any, scheduler: Any) -> None:
    """Restore what `save_optimizer` wrote. Raises MapformersError for a foreign or damaged file."""
    tensors, facts = _read(path)
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *facts["plain"].items()]:
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    try:
        optimizer.load_state_dict({"state": state, "param_groups": facts["groups"]})
        scheduler.load_state_dict(facts["scheduler"])
    except (ValueError, KeyError) as error:
        raise MapformersError(
            f"checkpoint: {path} must fit the model, got another one ({error}); start a new run"
        ) from None


def save_rng(path: Path) -> None:
    """The state of the global generators of Python, numpy and torch, which Trainer and dropout draw from."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    facts = {"python": [version, gauss], "numpy": [name, int(position), int(has_gauss), float(cached)]}
    tensors = {
        "python": torch.tensor(words, dtype=torch.int64),
        "torch": torch.get_rng_state().clone(),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
    }
    if torch.cuda.is_available():
        tensors |= {f"cuda.{i}": one for i, one in enumerate(torch.cuda.get_rng_state_all())}
    save_file(tensors, path, metadata={"facts": json.dumps(facts)})


def load_rng(path: Path) -> None:
    """Restore what `save_rng` wrote."""
    tensors, facts = _read(path)
    version, gauss = facts["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    name, position, has_gauss, cached = facts["numpy"]
    np.random.set_state((name, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(tensors["torch"])
    states = [tensors[f"cuda.{i}"] for i in range(len(tensors)) if f"cuda.{i}" in tensors]
    if states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return tensors, json.loads(file.metadata()["facts"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        raise MapformersError(
            f"checkpoint: {path} must be a safetensors file of this library, got a damaged or foreign "
            "one; delete its folder to use an older checkpoint"
        ) from None
