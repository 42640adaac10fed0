"""Writing and reading a checkpoint folder, or saying in one line what is wrong with it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mapformers.core.errors import MapformersError, require

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
RESTORE = "restore the file from a copy or train again"


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A folder to write into, whose files replace those of `target` when the block ends without an error.

    Raises MapformersError when writing fails, a full disk included; `target` is untouched then.
    """
    require(not target.is_file(), f"checkpoint: {target} must be a folder, got a file; name another")
    stage: Path | None = None
    try:
        target.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".saving-", dir=target))
        yield stage
        written = sorted(stage.iterdir())
        if any(path.suffix == ".safetensors" for path in written):
            for stale in _weights_in(target):
                if not (stage / stale.name).exists():
                    stale.unlink()
        for path in written:
            os.replace(path, target / path.name)
    except (OSError, SafetensorError) as error:
        raise MapformersError(
            f"checkpoint: {target} could not be written, got {_line(error)}; free space or name another one"
        ) from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)


def _weights_in(folder: Path) -> list[Path]:
    """Weight files and their index, as save_pretrained names them."""
    return [*folder.glob("model.safetensors"), *folder.glob("model-*-of-*.safetensors"), *folder.glob(INDEX)]


def load_pretrained(
    load: Callable[..., Any],
    model_type: str,
    source: str | os.PathLike[str] | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """`load` is from_pretrained of transformers for models of `model_type`.

    Checks before and after it that nothing is guessed.

    Raises MapformersError as described in PreTrainedBase.from_pretrained.
    """
    for name, wanted in (("use_safetensors", True), ("ignore_mismatched_sizes", False)):
        require(
            kwargs.pop(name, None) in (None, wanted),
            f"checkpoint: {name} must be {wanted}, got {not wanted}; leave it out",
        )
    if source is not None and os.path.exists(source):
        check_folder(Path(source) / kwargs.get("subfolder", ""), model_type)
    wants_info = kwargs.pop("output_loading_info", False)
    # Mismatches are let through to be named below, and nothing is loaded with them.
    with _named(source), _without_report():
        model, info = load(
            source,
            *args,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **kwargs,
        )
    for kind in ("missing", "unexpected", "mismatched"):
        keys = sorted(key if isinstance(key, str) else str(key[0]) for key in info[f"{kind}_keys"])
        require(
            not keys,
            f"checkpoint: {source} must hold exactly the weights of its config, got {len(keys)} {kind}, "
            f"the first is {keys[0] if keys else ''}; {RESTORE}",
        )
    return (model, info) if wants_info else model


def check_folder(folder: Path, model_type: str) -> None:
    """Raise MapformersError unless the folder holds a readable config of ours and readable safetensors."""
    require(
        folder.is_dir(), f"checkpoint: {folder} must be a folder, got a file; name the folder that holds it"
    )
    config = _read_json(folder / "config.json")
    found = config.get("model_type")
    require(
        found == model_type,
        f"checkpoint: {folder / 'config.json'} must have model_type {model_type!r}, got {found!r}; "
        "it belongs to another model, load it with transformers",
    )
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="pt") as tensors:
                tensors.keys()
        except (SafetensorError, OSError) as error:
            raise MapformersError(
                f"checkpoint: {file} must be a whole safetensors file, got {_line(error)}; {RESTORE}"
            ) from error


def _weight_files(folder: Path) -> list[Path]:
    """The weight files of the folder. Raises MapformersError when there are none, or only pickles."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        names = sorted(set(_read_json(folder / INDEX).get("weight_map", {}).values()))
        for name in names:
            require(
                (folder / name).is_file(), f"checkpoint: {folder / name} must exist, got nothing; {RESTORE}"
            )
        return [folder / name for name in names]
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    require(
        not pickles,
        f"checkpoint: {folder} must hold {WEIGHTS}, got pickled weights {', '.join(pickles)}, "
        "which can run code; convert them to safetensors where you trust them",
    )
    raise MapformersError(
        f"checkpoint: {folder} must hold {WEIGHTS}, got no weights; name a folder of save_pretrained"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MapformersError(
            f"checkpoint: {path} must exist, got nothing; name a folder that save_pretrained has written"
        ) from None
    except (OSError, ValueError) as error:
        raise MapformersError(
            f"checkpoint: {path} must be readable JSON, got {_line(error)}; {RESTORE}"
        ) from error
    require(
        isinstance(content, dict),
        f"checkpoint: {path} must hold a JSON object, got something else; {RESTORE}",
    )
    return content


@contextmanager
def _named(source: str | os.PathLike[str] | None) -> Iterator[None]:
    """Whatever transformers raises while loading comes out as one line that names the checkpoint."""
    try:
        yield
    except MapformersError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise MapformersError(
            f"checkpoint: {source} could not be loaded, got {_line(error)}; "
            "name a folder that save_pretrained has written, or a model of the hub"
        ) from error


@contextmanager
def _without_report() -> Iterator[None]:
    """Keep transformers from printing its table of missing weights: they end in one line here."""
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_is_error)
    try:
        yield
    finally:
        logger.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _line(error: BaseException) -> str:
    """An error as one line of at most 200 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
