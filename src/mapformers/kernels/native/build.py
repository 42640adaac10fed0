"""Compile the C++ sources on first use, into the user's cache folder."""

import contextlib
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
SOURCES = tuple(FOLDER / f"{name}.cpp" for name in ("range_attention", "nearest", "rotate", "scan"))
HEADERS = (FOLDER / "vectors.hpp",)
CACHE_VARIABLE = "MAPFORMERS_CACHE"
FLAGS_VARIABLE = "MAPFORMERS_CXXFLAGS"  # further flags, for example sanitizers
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
THREADS = ("-fopenmp",)  # the runtime is the one that torch has loaded already, by its name
LIMIT = 300  # seconds for the compiler


class BuildError(Exception):
    """Why there is no library, in one line."""


def compiler() -> str | None:
    """The C++ compiler: $CXX, or the first of c++, g++, clang++ on the path."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next(filter(None, map(shutil.which, names)), None)


@functools.cache
def compiler_version(path: str) -> str:
    """First line of `--version`; "" where it cannot be run."""
    try:
        answer = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=LIMIT, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.partition("\n")[0]


def cache_folder() -> Path:
    """$MAPFORMERS_CACHE, or mapformers in the user's cache folder."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mapformers"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mapformers"


def flags() -> list[str]:
    """What the compiler is told besides OpenMP."""
    return [*FLAGS, *shlex.split(os.environ.get(FLAGS_VARIABLE, ""))]


def processor() -> str:
    """What -march=native depends on: the machine, and on Linux model and features of the first processor."""
    facts = [platform.machine()]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        facts += [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    return "\n".join(facts)


def library_path(path: str) -> Path:
    """Where the library for this source, compiler `path`, processor and torch lies or will lie."""
    code = [file.read_text() for file in SOURCES + HEADERS]
    what = [*code, compiler_version(path), *flags(), *THREADS, processor(), torch.__version__]
    key = hashlib.sha256("\0".join(what).encode()).hexdigest()[:16]
    return cache_folder() / f"native-{key}.so"


def build() -> Path:
    """Path of the compiled library; compiles it if it is not there. Raises BuildError with the reason."""
    path = compiler()
    if path is None:
        raise BuildError("no C++ compiler found; install g++ or clang++, or set CXX")
    library = library_path(path)
    if library.is_file() and _is_mine(library):
        return library
    try:
        library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=library.parent, prefix="build-") as folder:
            print(
                "mapformers: compiling the native kernel, once for this machine ...",
                file=sys.stderr,
                flush=True,
            )
            compiled = Path(folder) / library.name
            _compile(path, compiled)
            compiled.replace(library)  # atomic: of two processes at once, both end with a whole file
    except OSError as error:
        raise BuildError(
            f"cannot write {library.parent} ({error.strerror}); free it, or set {CACHE_VARIABLE}"
        ) from None
    return library


def _compile(path: str, to: Path) -> None:
    for threads in (THREADS, ()):  # a compiler without OpenMP still gives one fast thread
        command = [path, *flags(), *threads, *map(str, SOURCES), "-o", str(to)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
        except subprocess.TimeoutExpired:
            raise BuildError(f"{path} took more than {LIMIT} s") from None
        if done.returncode == 0:
            return
    last = " | ".join(line.strip() for line in done.stderr.splitlines()[-3:])
    raise BuildError(f"{path} failed: {last or f'exit code {done.returncode}'}")


def _is_mine(library: Path) -> bool:
    """Nobody else could have put the file there: loading it runs its code."""
    if not hasattr(os, "getuid"):
        return True
    return library.stat().st_uid == os.getuid() and not library.stat().st_mode & 0o022
