"""The suite itself is tested: every injected bug must be caught by the tests named beside it.

Each mutant runs in a fork of a process that holds torch (stem.py), on a copy of the package. For the whole
table, two at a time:
python -m tests.mutation.test_mutation
"""

import ast
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mapformers.kernels.native.build import compiler
from tests.mutation.mutant import Mutant
from tests.mutation.mutants import MUTANTS
from tests.mutation.stem import ROOT, Stem, stem

PACKAGE = ROOT / "src" / "mapformers"
WORKERS = 2


def mutated(mutant: Mutant, folder: Path) -> Path:
    """A copy of the package below `folder` with the bug in it."""
    shutil.copytree(PACKAGE, folder / "mapformers", ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "mapformers" / mutant.file
    source = path.read_text(encoding="utf-8")
    found = source.count(mutant.old)
    assert found == 1, (
        f"{mutant.name}: the source changed, {mutant.file} holds the text {found} times; mend mutants.py"
    )
    path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def stem_of_all() -> Iterator[Stem]:
    """One for all mutants of a worker."""
    with stem() as one:
        yield one


def caught_by(mutant: Mutant, runner: Stem) -> str | None:
    """The test that fails on the mutant, or None when it survives."""
    with tempfile.TemporaryDirectory() as folder:
        package = mutated(mutant, Path(folder))
        native = {"MAPFORMERS_CACHE": f"{folder}/cache", "MAPFORMERS_CXXFLAGS": "-O1"}  # compiles faster
        result = runner.run(mutant.arguments, package, native if mutant.file.endswith(".cpp") else {})
    assert result.code in (0, 1), f"{mutant.name}: pytest did not run\n{result.printed}"
    if result.code == 0:
        return None
    match = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", result.printed, re.MULTILINE)
    assert match, f"{mutant.name}: pytest failed without naming a test\n{result.printed}"
    return match.group(1)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_bug_is_caught(
    mutant: Mutant, stem_of_all: Stem, record_property: Callable[[str, object], None]
) -> None:
    if mutant.file.endswith(".cpp") and compiler() is None:
        pytest.skip("no C++ compiler")
    test = caught_by(mutant, stem_of_all)
    record_property("mutant", mutant.name)
    record_property("caught_by", test)
    print(f"{mutant.name}: {test}")
    assert test is not None, f"{mutant.name}: survived {' '.join(mutant.arguments)}"


@pytest.mark.slow
def test_an_unharmed_copy_passes(stem_of_all: Stem) -> None:
    """A copy fails because of its bug, not because it is a copy."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(PACKAGE, Path(folder) / "mapformers")
        tests = ["tests/contract/test_catalog.py", "tests/mechanisms/test_by_hand.py"]
        result = stem_of_all.run(tests, Path(folder), {})
    assert result.code == 0, result.printed


def test_there_are_enough_and_no_two_alike() -> None:
    assert len(MUTANTS) >= 20
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_bug_still_fits_the_source(mutant: Mutant) -> None:
    source = (PACKAGE / mutant.file).read_text(encoding="utf-8")
    assert source.count(mutant.old) == 1, f"{mutant.file} changed: mend tests/mutation/mutants.py"
    if mutant.file.endswith(".py"):
        ast.parse(source.replace(mutant.old, mutant.new), mutant.file)


def rows(worker: int) -> int:
    """Print the rows of this worker's mutants, each as soon as it is known. Returns how many were caught."""
    caught = 0
    with stem() as runner:
        for mutant in MUTANTS[worker::WORKERS]:
            try:
                test = caught_by(mutant, runner)
            except AssertionError as error:
                test = f"ERROR {str(error).splitlines()[0]}"
            print(f"{mutant.name:<60} {test or 'SURVIVED'}", flush=True)
            caught += test is not None and not test.startswith("ERROR")
    return caught


def main() -> int:
    """Print the table; 1 when a mutant survives."""
    with ThreadPoolExecutor(WORKERS) as pool:
        caught = sum(pool.map(rows, range(WORKERS)))
    print(f"{caught} of {len(MUTANTS)} caught")
    return int(caught < len(MUTANTS))


if __name__ == "__main__":
    sys.exit(main())
