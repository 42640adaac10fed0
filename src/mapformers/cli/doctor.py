"""mapformers doctor: what this machine runs, and what would be faster."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")
SYSTEM = "that of the system"
LARGE_PAGES = "GLIBC_TUNABLES=glibc.malloc.hugetlb=1"


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Which kernels run here, with which compiler and how many threads, and what would be faster.

    \b
    Examples:
      mapformers doctor
      mapformers doctor --json
      MAPFORMERS_NATIVE=0 mapformers doctor
    """
    facts = examine()
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    for name, value in facts.items():
        if name != "advice":
            print(f"{name:13} {value}")
    print("\nnothing would be faster" if not facts["advice"] else "\nwhat would be faster:")
    for line in facts["advice"]:
        print(f"- {line}")


def examine() -> dict[str, Any]:
    """Everything that `doctor` prints. Builds the native kernel if it is not there yet."""
    import torch

    from mapformers import __version__
    from mapformers.kernels.native.build import cache_folder, compiler, compiler_version
    from mapformers.kernels.native.library import load

    path, native = compiler(), load()
    return {
        "mapformers": __version__,
        "torch": torch.__version__,
        "kernel": "native" if native.library else f"torch ({native.reason})",
        "vectors": _vectors(),
        "compiler": compiler_version(path) if path else "none",
        "cache": str(cache_folder()),
        "library": native.path.name if native.path else "none",
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} processors",
        "allocator": _allocator(),
        "gpu": _gpu(),
        "advice": _advice(),
    }


def _vectors() -> str:
    """Floats that the native kernel computes at once."""
    import torch

    from mapformers.kernels.native.call import STORED
    from mapformers.kernels.native.library import load

    library = load().library
    return "-" if library is None else f"{library.mapformers_lanes(STORED[torch.float32])} floats at once"


def _allocator() -> str:
    """The allocator that was preloaded, from the files mapped into this process."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return "unknown"
    return next((name for name in ALLOCATORS if name in maps), SYSTEM)


def _tunables() -> str:
    """What the user told glibc."""
    return f"GLIBC_TUNABLES={os.environ.get('GLIBC_TUNABLES', '')}"


def _gpu() -> str:
    """Which one there is. Nothing here is tested on a GPU."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def _advice() -> list[str]:
    """What the user can change, one line each, the largest gain first."""
    import torch

    from mapformers.kernels.native.library import load

    advice = []
    native = load()
    if native.library is None:
        advice.append(f"the native kernel: {native.reason}")
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.get_num_threads() < processors:
        advice.append(f"all {processors} processors: unset OMP_NUM_THREADS, or set it to {processors}")
    if sys.platform == "linux" and _allocator() == SYSTEM and LARGE_PAGES not in _tunables():
        advice.append(f"large pages for all tensors: {LARGE_PAGES} mapformers ...")
    return advice
