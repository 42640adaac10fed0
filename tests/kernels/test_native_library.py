"""Building, loading and refusing the native kernel: whatever goes wrong, the torch path runs and says why."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mapformers.core.errors import MapformersError
from mapformers.core.plans import Ranges
from mapformers.kernels.native import build
from mapformers.kernels.native.check import worst_deviation
from mapformers.kernels.native.library import load
from mapformers.kernels.native.op import native_range_attend

SHOW = (
    "from mapformers.kernels.native.library import load; n = load(); print(n.library is not None, n.reason)"
)
needs_native = pytest.mark.skipif(load().library is None, reason=f"no native kernel: {load().reason}")


def in_a_process(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_the_kernel_passes_its_check() -> None:
    assert "self-check" not in load().reason


def test_the_check_holds_under_autocast() -> None:
    """A model may make its first call there."""
    loaded = load()
    if loaded.library is None:
        pytest.skip(f"no native kernel: {loaded.reason}")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert worst_deviation(loaded.library) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"MAPFORMERS_NATIVE": "0"}, "MAPFORMERS_NATIVE=0"),
        ({"CXX": "/nowhere/c++"}, "no C++ compiler found; install g++ or clang++, or set CXX"),
    ],
)
def test_the_reason_is_said_once(environment: dict[str, str], reason: str, tmp_path: Path) -> None:
    done = in_a_process(SHOW + "; load()", MAPFORMERS_CACHE=str(tmp_path), **environment)
    assert done.stdout == f"False {reason}\n"
    assert done.stderr == f"mapformers: native kernel off ({reason}); slower torch kernels run instead\n"


@pytest.mark.slow
def test_a_failing_compiler_shows_its_last_lines(tmp_path: Path) -> None:
    compiler = script(
        tmp_path / "cc", 'echo one >&2; echo two >&2; echo "three: no" >&2; echo four >&2; exit 1'
    )
    done = in_a_process(SHOW, MAPFORMERS_CACHE=str(tmp_path / "cache"), CXX=compiler)
    assert done.stdout == f"False {compiler} failed: two | three: no | four\n"
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.slow
def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = in_a_process(SHOW, MAPFORMERS_CACHE=str(tmp_path / "file" / "cache"))
    assert done.stdout.startswith(
        f"False cannot write {tmp_path}/file/cache (Not a directory); free it, or set"
    )


@needs_native
@pytest.mark.slow
def test_two_processes_build_at_once(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", SHOW],
            env={**os.environ, "MAPFORMERS_CACHE": str(cache)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [process.communicate(timeout=120)[0] for process in both] == ["True \n", "True \n"]
    assert [path.suffix for path in cache.iterdir()] == [".so"]
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    damaged = next(cache.iterdir())
    damaged.write_bytes(b"not a library")
    assert in_a_process(SHOW, MAPFORMERS_CACHE=str(cache)).stdout == "True \n"


def test_another_processor_or_compiler_has_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    here = build.library_path("c++")
    monkeypatch.setattr(build, "processor", lambda: "another one")
    there = build.library_path("c++")
    assert here != there
    monkeypatch.setattr(build, "compiler_version", lambda path: "c++ 99")
    assert build.library_path("c++") not in (here, there)


def test_a_library_of_somebody_else_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAPFORMERS_CACHE", str(tmp_path))
    path = build.library_path("c++")
    path.write_bytes(b"")
    path.chmod(0o666)
    assert not build._is_mine(path)


@needs_native
def test_a_failed_self_check_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    from mapformers.kernels.native import library

    monkeypatch.setattr(library, "worst_deviation", lambda _: "output in float32 deviates by 3.0e-01")
    found = library._load()
    assert found.library is None
    assert found.reason == "self-check failed: output in float32 deviates by 3.0e-01"


@pytest.mark.slow
@needs_native
def test_a_forked_child_computes_the_same() -> None:
    program = """
import os, torch, mapformers as mf
torch.set_num_threads(2)
q, k, v = torch.randn(3, 1, 4, 300, 16, generator=torch.Generator().manual_seed(0))
band = mf.mechanism("band", window=9)
before = mf.attend(band, q, k, v, causal=True)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(before, mf.attend(band, q, k, v, causal=True)) else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert in_a_process(program).stdout == "0\n"


def ranges(**changes: torch.Tensor | None) -> Ranges:
    place = torch.arange(5)[None, None]
    whole = {"query_order": None, "key_order": None, "start": 0 * place[None], "end": place[None] + 1}
    return Ranges(**{**whole, **changes})


@needs_native
@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"query_order": torch.tensor([[[[0, 1, 2, 3, 3]]]])}, "query_order must name every query once"),
        ({"query_order": torch.tensor([[[[0, 1, 2, 3, 99]]]])}, "query_order must name every query once"),
        ({"key_order": torch.tensor([[[0, 1, 2, 3, -1]]])}, "key_order must name every key once"),
        ({"start": torch.tensor([[[[-1, 0, 0, 0, 0]]]])}, "start and end must lie inside"),
        ({"end": torch.tensor([[[[1, 2, 3, 4, 6]]]])}, "start and end must lie inside"),
    ],
)
def test_patterns_that_cannot_be(changes: dict[str, torch.Tensor], refusal: str) -> None:
    q, k, v = torch.randn(3, 1, 1, 5, 16)
    with pytest.raises(MapformersError, match=refusal):
        native_range_attend(ranges(**changes), q, k, v)


@needs_native
def test_ranges_in_any_order_and_overlap(generator: torch.Generator) -> None:
    """Nothing but the speed rests on ranges that never step back."""
    q, k, v = torch.randn(3, 1, 1, 100, 16, generator=generator, dtype=torch.float64)
    start = torch.randint(0, 100, (1, 1, 1, 100), generator=generator)
    end = (start + torch.randint(-3, 60, start.shape, generator=generator)).clamp(0, 100)
    key = torch.arange(100)
    seen = (key >= start[0, 0, 0, :, None]) & (key < end[0, 0, 0, :, None])
    weights = (q @ k.transpose(-1, -2) / 4).masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num()
    attended = native_range_attend(Ranges(None, None, start, end), q, k, v)
    torch.testing.assert_close(attended.output, weights @ v, rtol=1e-12, atol=1e-12)
