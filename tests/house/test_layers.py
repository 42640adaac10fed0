"""Imports go downward only: docs/how-it-fits.md as a test."""

import ast
import sys
import tomllib
from pathlib import Path

from tests.house.source import PACKAGE, ROOT, name, package_files, tree

# A file may import from its own layer's folder and from every row below (listed first).
# Folders in one row do not know each other.
ROWS: tuple[tuple[str, ...], ...] = (
    ("core",),
    ("kernels", "spec"),
    ("mechanisms", "priors", "heads"),
    ("functional",),
    ("attention",),
    ("blocks",),
    ("catalog",),
    ("build", "audit"),
    ("__init__",),  # the public face: import mapformers
    ("models",),
    ("hub",),
    ("tasks",),
    ("report",),
    ("measure",),
    ("train",),
    ("inspector", "study"),
    ("site",),
    ("cli",),
    ("__main__",),
)
ROW = {part: height for height, row in enumerate(ROWS) for part in row}

# What the file of another row may import all the same, and why.
EXCEPTIONS: dict[tuple[str, str], str] = {}

# Names on the package index that differ from the name to import.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "linear_attention_transformer": "linear-attention-transformer",
    "local_attention": "local-attention",
    "nystrom_attention": "nystrom-attention",
    "perceiver_pytorch": "perceiver-pytorch",
    "performer_pytorch": "performer-pytorch",
    "reformer_pytorch": "reformer-pytorch",
    "routing_transformer": "routing-transformer",
}


def part_of(path: Path) -> str:
    """The layer that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> list[str]:
    """Dotted names of all modules that a file imports, those inside functions too."""
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno} imports relatively; write the whole name"
            found.append(node.module or "")
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def layers_imported(path: Path) -> set[str]:
    """The layers that a file imports from; `import mapformers` alone is the public face."""
    layers = set()
    for module in imported(path):
        head, *rest = module.split(".")
        if head == "mapformers":
            layers.add(rest[0] if rest and rest[0] in ROW else "__init__")
    return layers - ({"__init__"} if layers - {"__init__"} else set())


def test_every_layer_has_a_row() -> None:
    layers = {part_of(path) for path in package_files()}
    assert layers <= set(ROW), f"give these a row in ROWS: {layers - set(ROW)}"


def test_imports_go_downward() -> None:
    offences = []
    for path in package_files():
        own = part_of(path)
        for layer in layers_imported(path) - {own}:
            if ROW[layer] >= ROW[own] and (name(path), layer) not in EXCEPTIONS:
                offences.append(f"{name(path)} imports {layer}, which lies beside or above {own}")
    assert not offences, "\n".join(offences)


def test_exceptions_are_in_use() -> None:
    unused = [
        f"{file} -> {layer}" for file, layer in EXCEPTIONS if layer not in layers_imported(PACKAGE / file)
    ]
    assert not unused, f"exceptions nobody needs any more: {unused}"


def test_the_core_needs_torch_and_einops_only() -> None:
    """Below the models, nothing but torch, einops and Python's own library."""
    for path in package_files():
        if ROW[part_of(path)] <= ROW["__init__"]:
            heads = {module.split(".")[0] for module in imported(path)}
            foreign = heads - {"torch", "einops", "mapformers"} - sys.stdlib_module_names
            assert not foreign, f"{name(path)} imports {foreign}; import them where they are used, above hub"


def declared() -> set[str]:
    """The distributions that pyproject.toml names, in lower case, without its own extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [
        line for extra in project["optional-dependencies"].values() for line in extra
    ]
    names = {line.split("[")[0].split(">")[0].split("<")[0].split("=")[0].strip().lower() for line in lines}
    return names - {"mapformers"}


def test_every_import_is_declared() -> None:
    for path in package_files():
        heads = {module.split(".")[0] for module in imported(path)} - {"mapformers", "__future__"}
        for head in heads - sys.stdlib_module_names:
            wanted = DISTRIBUTIONS.get(head, head).lower()
            assert wanted in declared(), f"{name(path)} imports {head}, which pyproject.toml does not name"


def test_constraints_pin_every_direct_dependency() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pinned = {line.split("==")[0].lower() for line in lines}
    assert pinned == declared()
    assert all(line.count("==") == 1 for line in lines)
    assert "torch==2.13.0" in lines


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()
