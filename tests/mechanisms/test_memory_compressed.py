"""memory_compressed: by hand, and full attention as a special case."""

import pytest
import torch

import mapformers as mf
from mapformers.core.mechanism import Shape
from tests.mechanisms.test_by_hand import H, Q, weights_by_probing
from tests.tolerances import assert_close


def test_by_hand() -> None:
    """Equal scores, cells of two tokens: nothing before the first cell is whole; the last cell holds one."""
    x = torch.zeros(1, 1, 4, 2, dtype=torch.float64)
    made = mf.mechanism("memory_compressed", stride=2).bind(Shape(1, 1, 2)).double()
    rows = [[0, 0, 0, 0], [H, H, 0, 0], [H, H, 0, 0], [Q, Q, Q, Q]]
    expected = torch.tensor(rows, dtype=torch.float64)
    assert_close(weights_by_probing(made, x, x, True), expected, "parity", "plan")
    assert_close(mf.dense_weights(made, x, x, causal=True)[0, 0], expected, "parity", "definition")
    three = torch.tensor([[Q, Q, Q]] * 3, dtype=torch.float64)
    assert_close(weights_by_probing(made, x[:, :, :3], x[:, :, :3], False), three, "parity", "both sides")


@pytest.mark.parametrize("causal", [False, True])
def test_cells_of_one_token_are_full_attention(causal: bool, generator: torch.Generator) -> None:
    q, k, v = torch.randn(3, 2, 2, 19, 8, generator=generator, dtype=torch.float64)
    full = mf.attend(mf.mechanism("full"), q, k, v, causal=causal)
    assert_close(
        mf.attend(mf.mechanism("memory_compressed", stride=1), q, k, v, causal=causal), full, "parity"
    )


def test_explicitly_convolved_keys(generator: torch.Generator) -> None:
    q, k, v = torch.randn(3, 1, 1, 9, 4, generator=generator, dtype=torch.float64)
    made = mf.mechanism("memory_compressed", stride=3).bind(Shape(1, 1, 4)).double()
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    pooled_k = torch.einsum("ctd,t->cd", k.view(3, 3, 4), made.key_weight[0])
    pooled_v = torch.einsum("ctd,t->cd", v.view(3, 3, 4), made.value_weight[0])
    expected = (q[0, 0] @ pooled_k.T / 2).softmax(-1) @ pooled_v
    assert_close(mf.attend(made, q, k, v)[0, 0], expected, "parity")


def test_bad_input() -> None:
    with pytest.raises(mf.MapformersError, match="memory_compressed: stride must be 1 or more, got 0"):
        mf.mechanism("memory_compressed", stride=0)
