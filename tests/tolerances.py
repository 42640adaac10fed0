"""How close is close: one table for the whole suite. No test writes a tolerance of its own.

kind      what is compared
parity    a fast kernel's output with its dense twin
gradient  the gradients of the two
decode    tokens one by one with the parallel form
rounding  the same sums in another order (tile borders may move, values may not)
"""

from typing import Literal

import torch
from torch import Tensor

Kind = Literal["parity", "gradient", "decode", "rounding"]

TOLERANCES: dict[str, dict[torch.dtype, float]] = {
    "parity": {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3},
    "gradient": {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2},
    "decode": {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3},
    "rounding": {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3},
}


def assert_close(actual: Tensor, expected: Tensor, kind: Kind, what: str = "") -> None:
    """Fail unless both have one shape and agree within the table's tolerance, absolute and relative.

    The coarser dtype of the two decides, so that float32 can be held against a float64 definition.
    """
    table = TOLERANCES[kind]
    tolerance = max(table[actual.dtype], table[expected.dtype])
    torch.testing.assert_close(
        actual.double(),
        expected.double(),
        rtol=tolerance,
        atol=tolerance,
        msg=lambda text: f"{what or kind}: {text}",
    )


def assert_close_in_norm(actual: Tensor, expected: Tensor, kind: Kind) -> None:
    """The same for whole tensors: sums of rounded terms cancel in some elements, never in their norm."""
    assert actual.shape == expected.shape
    tolerance = max(TOLERANCES[kind][x.dtype] for x in (actual, expected))
    difference = torch.linalg.vector_norm(actual.double() - expected.double())
    limit = tolerance * (1 + torch.linalg.vector_norm(expected.double()))
    assert difference <= limit, f"{kind}: {difference} exceeds {limit}"
