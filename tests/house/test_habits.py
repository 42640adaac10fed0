"""What the code must not do: checks without assert, unsafe loading, global state, arguments that vanish."""

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.house.source import PACKAGE, calls, dotted, files_of_tests, functions, name, package_files, tree

COMPARISONS = ("allclose", "isclose", "equal", "array_equal")
SKIPS_BY_CALL = {"pytest.skip", "pytest.xfail", "pytest.fail"}
SKIPS_BY_MARK = {f"pytest.{one}" for one in ("mark.skip", "mark.skipif", "mark.xfail", "importorskip")}
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "torch.save"}
GLOBAL_STATE = {
    "torch.manual_seed",
    "torch.seed",
    "torch.random.manual_seed",
    "torch.set_rng_state",
    "torch.cuda.set_rng_state_all",
    "torch.set_num_threads",
    "torch.set_num_interop_threads",
    "torch.set_default_dtype",
    "torch.set_default_device",
    "torch.use_deterministic_algorithms",
    "np.random.seed",
    "numpy.random.seed",
    "np.random.set_state",
    "random.seed",
    "random.setstate",
    "set_seed",
    "transformers.set_seed",
    "accelerate.utils.set_seed",
}
DRAWS = {
    f"torch.{draw}" for draw in ("rand", "randn", "randint", "randperm", "multinomial", "normal", "bernoulli")
}


# (file, call) -> why it may touch what all code in the process shares
GLOBAL_STATE_EXCEPTIONS: dict[tuple[str, str], str] = {
    (
        "measure/peers.py",
        "torch.manual_seed",
    ): "inside fork_rng: packages of others draw from the global generator",
    (
        "train/generate.py",
        "torch.manual_seed",
    ): "inside fork_rng: transformers samples from the global generator",
    (
        "train/run.py",
        "set_seed",
    ): "a run owns its process; dropout draws from the global generator",
    **dict.fromkeys(
        [
            ("train/checkpoint.py", "random.setstate"),
            ("train/checkpoint.py", "np.random.set_state"),
            ("train/checkpoint.py", "torch.set_rng_state"),
            ("train/checkpoint.py", "torch.cuda.set_rng_state_all"),
        ],
        "a resumed run goes on with the draws of the one that was cut off",
    ),
}

# (file, functions) -> why their **name cannot swallow a typo
TRANSFORMERS = "the signature of transformers, to which the rest is handed on and which checks it"
KEYWORDS_EXCEPTIONS: dict[tuple[str, str], str] = {
    ("build.py", "mechanism"): "the options of the mechanism; make_config refuses the unknown ones by name",
    ("models/cache.py", "BlockSlot.update"): "a signature of transformers; it always raises",
    ("models/checkpoint.py", "load_pretrained"): TRANSFORMERS,
    ("models/strict.py", "with_one_error_type.__init__"): "hands on to the fields of the config",
    (
        "models/config.py",
        "MapformerConfig.__post_init__",
    ): "unknown fields arrive here and are refused by name",
    ("models/config.py", "MapformerConfig.stack"): "changes of fields; the config refuses unknown ones",
    (
        "models/perceiver_ar/config.py",
        "PerceiverARConfig.__post_init__",
    ): "as MapformerConfig",
    (
        "models/perceiver/config.py",
        "PerceiverConfig.__post_init__",
    ): "unknown fields arrive here and are refused by name",
    ("models/pretrained.py", "PreTrainedBase.*"): TRANSFORMERS,
    ("train/callbacks.py", "*.on_*"): "Trainer passes what it has to every callback",
    ("train/trainer.py", "RunTrainer.__init__"): TRANSFORMERS,
}


def may_take_keywords(path: Path, function: str) -> list[tuple[str, str]]:
    """The exceptions that cover a function."""
    return [key for key in KEYWORDS_EXCEPTIONS if key[0] == name(path) and fnmatch(function, key[1])]


def offences_of_comparison(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        thrown_away = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        if thrown_away and dotted(node.value.func).split(".")[-1] in COMPARISONS:
            yield f"{name(path)}:{node.lineno} compares and does not assert"


def offences_of_skip(path: Path) -> Iterator[str]:
    for called, node in calls(path):
        words = {keyword.arg for keyword in node.keywords}
        said = "reason" in words or (bool(node.args) and called in SKIPS_BY_CALL)
        if called in SKIPS_BY_CALL | SKIPS_BY_MARK and not said:
            yield f"{name(path)}:{node.lineno} {called} without a reason"
    for node in ast.walk(tree(path)):
        for decorator in getattr(node, "decorator_list", []):
            if dotted(decorator) in SKIPS_BY_MARK:
                yield f"{name(path)}:{node.lineno} {dotted(decorator)} without a reason"


def offences_of_loading(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (f"{name(path)}: imports {one}" for one in names if one.split(".")[0] in UNSAFE_MODULES)
    for called, node in calls(path):
        if called in UNSAFE_CALLS:
            yield f"{name(path)}:{node.lineno} calls {called}"
        for keyword in node.keywords:
            value = keyword.value
            if keyword.arg == "weights_only" and isinstance(value, ast.Constant) and not value.value:
                yield f"{name(path)}:{node.lineno} loads with weights_only=False"


def offences_of_global_state(path: Path) -> Iterator[str]:
    for called, node in calls(path):
        where = f"{name(path)}:{node.lineno} {called}"
        if called in GLOBAL_STATE and (name(path), called) not in GLOBAL_STATE_EXCEPTIONS:
            yield f"{where} changes what the whole process shares; take a torch.Generator or an argument"
        if called in DRAWS and "generator" not in {keyword.arg for keyword in node.keywords}:
            yield f"{where} draws from the global generator; pass generator="


def offences_of_keywords(path: Path) -> Iterator[str]:
    for function, node in functions(path):
        if node.args.kwarg is not None and not may_take_keywords(path, function):
            yield f"{name(path)}:{node.lineno} {function} takes **{node.args.kwarg.arg}; name its arguments"


def test_every_comparison_is_asserted() -> None:
    """A bare `torch.allclose(a, b)` throws its answer away."""
    offences = [one for path in files_of_tests() for one in offences_of_comparison(path)]
    assert not offences, "\n".join(offences)


def test_every_skip_says_why() -> None:
    offences = [one for path in files_of_tests() for one in offences_of_skip(path)]
    assert not offences, "\n".join(offences)


def test_nothing_unsafe_is_loaded_or_run() -> None:
    offences = [one for path in package_files() for one in offences_of_loading(path)]
    assert not offences, "\n".join(offences)


def test_global_state_is_left_alone() -> None:
    offences = [one for path in package_files() for one in offences_of_global_state(path)]
    assert not offences, "\n".join(offences)


def test_no_keyword_argument_vanishes() -> None:
    offences = [one for path in package_files() for one in offences_of_keywords(path)]
    assert not offences, "\n".join(offences)


def test_exceptions_are_in_use() -> None:
    for file, wanted in GLOBAL_STATE_EXCEPTIONS:
        assert wanted in {called for called, _ in calls(PACKAGE / file)}, f"{file} no longer calls {wanted}"
    used = {
        key
        for path in package_files()
        for function, node in functions(path)
        if node.args.kwarg is not None
        for key in may_take_keywords(path, function)
    }
    assert used == set(KEYWORDS_EXCEPTIONS), f"nobody needs these any more: {set(KEYWORDS_EXCEPTIONS) - used}"


def test_each_check_catches_what_it_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that cannot fail is worth nothing: each of these lines must be caught."""
    monkeypatch.setattr("tests.house.source.ROOT", tmp_path)
    bad = {
        offences_of_comparison: ["torch.allclose(a, b)", "isclose(a, b)"],
        offences_of_skip: [
            "@pytest.mark.skip\ndef test(): pass",
            "pytest.skip()",
            "pytest.importorskip('x')",
        ],
        offences_of_loading: [
            "import pickle",
            "from pickle import load",
            "eval('1')",
            "load(f, weights_only=False)",
        ],
        offences_of_global_state: ["torch.manual_seed(0)", "torch.randn(3)", "torch.set_num_threads(1)"],
        offences_of_keywords: ["def f(**kwargs): pass"],
    }
    for check, texts in bad.items():
        for number, text in enumerate(texts):
            path = tmp_path / f"{check.__name__}{number}.py"
            path.write_text(text)
            assert len(list(check(path))) == 1, text
