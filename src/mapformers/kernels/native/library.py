"""The compiled kernel as a loaded library: built on first use, checked before it is trusted."""

import contextlib
import ctypes
import functools
import logging
import os
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mapformers.kernels.native.build import BuildError, build
from mapformers.kernels.native.call import STORED, Call, Nearest, Rotate
from mapformers.kernels.native.check import worst_deviation
from mapformers.kernels.native.scan import Scan

SWITCH = "MAPFORMERS_NATIVE"
STRUCTURES = {"call": Call, "nearest": Nearest, "rotate": Rotate, "scan": Scan}
PROCEDURES = (
    *("range_forward", "range_backward", "nearest", "rotate"),
    *("scan_forward", "scan_backward", "large_pages"),
)
log = logging.getLogger("mapformers")
_wanted: ContextVar[bool] = ContextVar("native_kernel_wanted", default=True)
_forked = False


@dataclass(frozen=True)
class Native:
    """The library, or the reason why the torch path runs."""

    library: ctypes.CDLL | None = None
    path: Path | None = None
    reason: str = ""


@functools.cache
def load() -> Native:
    """Build, load, check; once per process. Never raises: the torch path computes the same."""
    native = _load()
    if native.library is None:
        log.warning("mapformers: native kernel off (%s); slower torch kernels run instead", native.reason)
    return native


def _load() -> Native:
    if _switched_off():
        return Native(reason=f"{SWITCH}={os.environ[SWITCH]}")
    try:
        path, library = _built()
    except (BuildError, OSError) as error:
        return Native(reason=str(error))
    for name in PROCEDURES:
        getattr(library, f"mapformers_{name}").restype = None
    for name, structure in STRUCTURES.items():
        size_of = getattr(library, f"mapformers_{name}_size")
        size_of.restype = ctypes.c_int64
        if size_of() != ctypes.sizeof(structure):
            return Native(path=path, reason=f"{path.name} does not fit this version; delete it")
    failed = worst_deviation(library)
    if failed is not None:
        return Native(path=path, reason=f"self-check failed: {failed}")
    return Native(library, path)


def _built() -> tuple[Path, ctypes.CDLL]:
    path = build()
    try:
        return path, ctypes.CDLL(str(path))
    except OSError:  # a damaged file: once more from the source
        path.unlink()
        path = build()
        return path, ctypes.CDLL(str(path))


def library() -> ctypes.CDLL:
    """The loaded library. Ask `active` first."""
    loaded = load().library
    if loaded is None:
        raise RuntimeError(f"native kernel off ({load().reason})")
    return loaded


def wanted() -> bool:
    """Whether anything but the torch path may run here and now, as far as the user has a say in it."""
    return _wanted.get() and not _switched_off()


def _switched_off() -> bool:
    return os.environ.get(SWITCH, "1").lower() in ("0", "off", "false", "no")


def active() -> bool:
    """Whether the native kernel may run here and now."""
    return _wanted.get() and load().library is not None


def takes(*tensors: Tensor) -> bool:
    """Whether the native kernel runs here and now, and takes these tensors: one dtype, on the CPU."""
    first = tensors[0].dtype
    return (
        first in STORED
        and all(x.device.type == "cpu" and x.dtype == first for x in tensors)
        and torch._C._functorch.peek_interpreter_stack() is None  # no rules for vmap, jvp and their kind
        and active()
    )


@contextlib.contextmanager
def torch_kernels() -> Iterator[None]:
    """Within it, the torch path runs; for comparisons and for derivatives of derivatives."""
    token = _wanted.set(False)
    try:
        yield
    finally:
        _wanted.reset(token)


def thread_count() -> int:
    """torch's number of threads; 1 in a forked child, where the threads of the parent are gone."""
    return 1 if _forked else torch.get_num_threads()


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
