"""Which kernels the suite runs on, which cases run at every commit, and which in `make test` only."""

from collections.abc import Iterator

import pytest

from mapformers.kernels.native.library import load, torch_kernels
from tests.contract import cases

COUNTING = "test_cost"  # counts the products that torch makes, so it runs on torch's kernels alone

# One configuration of each mechanism and one mixture at every commit; the others are variants of these.
FIRST = {texts[0] for texts in (*cases.SPECS.values(), *cases.BLOCKS.values())} | {cases.MIXTURES[0]}
# The mechanisms that run as ranges.
WINDOWED = (
    "global_tokens",
    "band",
    "dilated",
    "strided",
    "random(",
    "block_local",
    "longformer",
    "sparse_transformer",
    "bigbird",
    "reformer",
    "routing",
    "sac",
    "moba",
    "nsa",
    "informer(factor",
    "memory_compressed",
    "axial",
    "image_local",
    "binary_tree",
)
# What runs both ways is tested the causal way at every commit, which is where most can go wrong.
CAUSAL = {text for text in FIRST if text not in cases.ALL_BLOCKS and True in cases.directions_of(text)}
VARIANTS = {*cases.ALL, *cases.ALL_BLOCKS, *cases.MIXTURES} - FIRST


@pytest.fixture(autouse=True, params=["native", "torch"])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every case runs on both; where the mechanism makes no ranges, once."""
    if request.param == "torch":
        with torch_kernels():
            yield request.param
    else:
        if load().library is None:
            pytest.skip(f"no native kernel: {load().reason}")
        yield request.param


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the variants slow, and keep one kernel for cases in which the kernel plays no part."""
    kept = []
    for item in items:
        call = getattr(item, "callspec", None)
        if call is None or "kernels" not in call.params:
            kept.append(item)
            continue
        texts = [v for name, v in call.params.items() if isinstance(v, str) and name != "kernels"]
        windowed = any(name in text for text in texts for name in WINDOWED)
        one = "torch" if item.module.__name__.endswith(COUNTING) or not windowed else None
        if one is not None and call.params["kernels"] != one:
            continue
        variant = any(text in VARIANTS for text in texts)
        variant = variant or (one is None and call.params["kernels"] == "torch")
        if variant or (call.params.get("causal") is False and any(text in CAUSAL for text in texts)):
            item.add_marker(pytest.mark.slow)
        kept.append(item)
    items[:] = kept
