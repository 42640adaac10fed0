"""linformer: what is shared, and full attention as a special case."""

import pytest
import torch

import mapformers as mf
from mapformers.core.mechanism import Shape
from tests.tolerances import assert_close


@pytest.mark.parametrize(
    ("sharing", "sizes"),
    [
        ("none", [(2, 5, 9), (2, 5, 9)]),
        ("headwise", [(1, 5, 9), (1, 5, 9)]),
        ("key_value", [(1, 5, 9)]),
        ("layerwise", [(1, 5, 9)]),
    ],
)
def test_what_is_shared_is_held_once(sharing: str, sizes: list[tuple[int, ...]]) -> None:
    made = mf.mechanism("linformer", rank=5, length=9, sharing=sharing).bind(Shape(2, 2, 4))
    assert [tuple(p.shape) for p in made.parameters()] == sizes


@pytest.mark.parametrize("sharing", ["none", "headwise", "key_value", "layerwise"])
def test_the_identity_compresses_nothing(sharing: str, generator: torch.Generator) -> None:
    q, k, v = torch.randn(3, 2, 2, 9, 4, generator=generator, dtype=torch.float64)
    made = mf.mechanism("linformer", rank=9, length=9, sharing=sharing).bind(Shape(2, 2, 4)).double()
    with torch.no_grad():
        for projection in made.parameters():
            projection.copy_(torch.eye(9).expand_as(projection))
    assert_close(mf.attend(made, q, k, v), mf.attend(mf.mechanism("full"), q, k, v), "parity")


def test_bad_input() -> None:
    with pytest.raises(mf.MapformersError, match="linformer: sharing"):
        mf.mechanism("linformer", sharing="all")
