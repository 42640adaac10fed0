"""Sizes that keep a newcomer willing. Exceptions are named, with their reasons, and printed."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.source import ROOT, Function, dotted, files_of_tests, functions, name, package_files, tree

FILE_LINES = 400
MECHANISM_LINES = 150
KERNEL_LINES = 250
FUNCTION_LINES = 50
PARAMETERS = 6
CONFIG_FIELDS = 8
COLUMNS = 110

# (file, function or class or "" for the file, limit) -> why it may be larger
FACE = "the public face: its names are fixed, all but the first by keyword"
EXCEPTIONS: dict[tuple[str, str, str], str] = {
    ("audit/__init__.py", "audit", "parameters"): FACE,
    ("build.py", "attention", "parameters"): FACE,
    ("build.py", "block", "parameters"): FACE,
    ("cli/audit_command.py", "audit", "parameters"): "one for each option of the command",
    ("cli/bench_command.py", "bench", "parameters"): "one for each option of the command",
    ("cli/choose_command.py", "choose", "parameters"): "one for each option of the command",
    ("cli/compare_command.py", "compare", "parameters"): "one for each option of the command",
    ("cli/inspect_command.py", "inspect", "parameters"): "one for each option of the command",
    ("cli/run_commands.py", "train", "parameters"): "one for each option of the command",
    ("functional.py", "attend", "parameters"): FACE,
    ("functional.py", "dense_weights", "parameters"): FACE,
    ("functional.py", "_prepare", "parameters"): "takes what attend and dense_weights share",
    ("functional.py", "check_supports", "parameters"): "one switch for each capability of a card",
    ("kernels/native/op.py", "range_attention", "parameters"): "operators take tensors and numbers only",
    ("kernels/native/op.py", "range_attention_backward", "parameters"): "as range_attention",
    (
        "mechanisms/content/routing.py",
        "",
        "lines",
    ): "eight options with their refusals, and hooks for centroids",
    ("models/causal_lm.py", "MapformerForCausalLM.forward", "parameters"): "the signature of transformers",
    ("models/config.py", "MapformerConfig", "fields"): "the fields that a saved model must say",
    ("models/perceiver/config.py", "PerceiverConfig", "fields"): "the fields that a saved model must say",
    ("models/seq2seq.py", "MapformerForSeq2SeqLM.forward", "parameters"): "the signature of transformers",
    ("models/stack.py", "MapformerModel.forward", "parameters"): "the signature of transformers",
}

# (file, function or class or "" for the file, limit, size)
Excess = tuple[str, str, str, int]


def limit_of(path: Path) -> int:
    """Lines that a file may have. Helpers beside a mechanism are held to the limit of any file."""
    top = name(path).split("/")[0]
    if top == "kernels":
        return KERNEL_LINES
    is_mechanism = any("Mechanism" in map(dotted, node.bases) for node in classes(path))
    return MECHANISM_LINES if top == "mechanisms" and is_mechanism else FILE_LINES


def classes(path: Path) -> list[ast.ClassDef]:
    return [node for node in tree(path).body if isinstance(node, ast.ClassDef)]


def parameters(function: Function) -> int:
    """How many things a caller may pass, self not counted."""
    named = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    own = bool(named) and named[0].arg in ("self", "cls")
    return len(named) - own + (function.args.vararg is not None) + (function.args.kwarg is not None)


def fields(node: ast.ClassDef) -> int:
    """Fields of a class that describes options."""
    return sum(isinstance(child, ast.AnnAssign) and child.value is not None for child in node.body)


def excesses(path: Path) -> Iterator[Excess]:
    file = name(path)
    lines = path.read_text(encoding="utf-8").count("\n")
    if lines > limit_of(path):
        yield file, "", "lines", lines
    for function, node in functions(path):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > FUNCTION_LINES:
            yield file, function, "lines", length
        if parameters(node) > PARAMETERS:
            yield file, function, "parameters", parameters(node)
    for node in classes(path):
        if node.name.endswith("Config") and fields(node) > CONFIG_FIELDS:
            yield file, node.name, "fields", fields(node)


def all_excesses() -> list[Excess]:
    return [excess for path in package_files() for excess in excesses(path)]


def said(key: tuple[str, str, str], size: int) -> str:
    file, part, limit = key
    return f"{file} {part}: {size} {limit}".replace(" :", ":")


def test_only_named_exceptions_are_larger(capsys: pytest.CaptureFixture[str]) -> None:
    found = {(file, part, limit): size for file, part, limit, size in all_excesses()}
    with capsys.disabled():
        for key, reason in EXCEPTIONS.items():
            print(f"\n  {said(key, found.get(key, 0))}: {reason}", end="")
    unnamed = [said(key, size) for key, size in found.items() if key not in EXCEPTIONS]
    assert not unnamed, "cut these, or name them with a reason:\n" + "\n".join(unnamed)
    stale = [key for key in EXCEPTIONS if key not in found]
    assert not stale, f"exceptions nobody needs any more: {stale}"


def test_tests_stay_readable() -> None:
    lines = {name(path): path.read_text(encoding="utf-8").count("\n") for path in files_of_tests()}
    long = {file: count for file, count in lines.items() if count > FILE_LINES}
    assert not long, f"split these by what they prove: {long}"


def test_ruff_holds_the_line_length() -> None:
    assert f"line-length = {COLUMNS}" in (ROOT / "pyproject.toml").read_text()
