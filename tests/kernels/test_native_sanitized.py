"""The native kernels under AddressSanitizer and UndefinedBehaviorSanitizer, over random plans."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mapformers.kernels.native.build import compiler

ROOT = Path(__file__).resolve().parents[2]
FLAGS = "-O1 -fsanitize=address,undefined -fno-sanitize-recover=all -g"


def sanitizer(name: str) -> str:
    """Path of the compiler's library, which must be loaded before everything else; "" if there is none."""
    path = compiler()
    if path is None:
        return ""
    done = subprocess.run([path, f"-print-file-name={name}"], capture_output=True, text=True, check=False)
    found = done.stdout.strip()
    return found if os.path.isabs(found) else ""


@pytest.mark.slow
@pytest.mark.skipif(
    not sanitizer("libasan.so"), reason="the compiler has no AddressSanitizer; with g++ on Linux it has"
)
def test_no_access_outside_and_nothing_undefined(tmp_path: Path) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        "MAPFORMERS_CACHE": str(tmp_path),
        "MAPFORMERS_CXXFLAGS": FLAGS,
        "LD_PRELOAD": f"{sanitizer('libasan.so')} {sanitizer('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself leaks at exit
        "OMP_NUM_THREADS": "2",
    }
    # -s: what the sanitizers report goes to standard error, not into pytest's keeping
    options = ["-q", "-s", "-p", "no:cacheprovider", "-m", "not slow"]
    tests = [f"tests/kernels/test_{name}.py" for name in ("native", "native_scan", "nearest")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " skipped" not in done.stdout, done.stdout  # the kernel itself must have run
