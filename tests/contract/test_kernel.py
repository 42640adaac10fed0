"""What is a range runs on the kernel for ranges, and the result says so."""

import pytest
import torch

from tests.contract.cases import DIM, SPECS, build, layer
from tests.contract.conftest import WINDOWED

PARTLY = ("low_rank_band", "informer")  # one part is a range, another is not
RANGES = [
    texts[0]
    for name, texts in SPECS.items()
    if name not in PARTLY and any(name in texts[0] for name in WINDOWED)
]


@pytest.mark.parametrize("text", RANGES)
def test_result_names_the_kernel_for_ranges(text: str, kernels: str, generator: torch.Generator) -> None:
    attention = layer(text, generator, causal=build(text).card.causal == "strict")
    x = torch.randn(2, 40, DIM, generator=generator, dtype=torch.float64)
    assert attention.attend(x).kernels == (kernels,)
