"""Axial attention: by hand, against its atoms, and what two layers of it reach."""

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.core.mechanism import Mechanism
from mapformers.kernels.softmax import masked_softmax, scaled_scores
from tests.contract import cases
from tests.mechanisms.test_by_hand import H, assert_rows, weights_by_probing
from tests.tolerances import assert_close

HEIGHT, WIDTH = 5, 7
N = HEIGHT * WIDTH


def axial(axis: str, **options: int) -> Mechanism:
    return mf.mechanism("axial", axis=axis, **{"width": WIDTH, **options})


def shown(mechanism: Mechanism, causal: bool, n: int = N) -> Tensor:
    """[n, n] who sees whom on the fast path."""
    q = torch.zeros(1, 1, n, 2, dtype=torch.float64)
    return weights_by_probing(mechanism, q, q, causal) > 0


def test_four_tokens_by_hand() -> None:
    """A grid of two rows and two columns: 0 1 / 2 3."""
    rows, columns = (mf.mechanism("axial", axis=axis, width=2, height=2) for axis in ("row", "column"))
    assert_rows(rows, False, [[H, H, 0, 0], [H, H, 0, 0], [0, 0, H, H], [0, 0, H, H]])
    assert_rows(rows, True, [[1, 0, 0, 0], [H, H, 0, 0], [0, 0, 1, 0], [0, 0, H, H]])
    assert_rows(columns, False, [[H, 0, H, 0], [0, H, 0, H], [H, 0, H, 0], [0, H, 0, H]])
    assert_rows(columns, True, [[1, 0, 0, 0], [0, 1, 0, 0], [H, 0, H, 0], [0, H, 0, H]])


def test_padding_does_not_shift_the_grid() -> None:
    """A pad, then a row of two, then one more token."""
    real = torch.tensor([[False, True, True, True]])
    zero = torch.zeros(1, 1, 4, 2, dtype=torch.float64)
    got = weights_by_probing(mf.mechanism("axial", width=2), zero, zero, True, key_is_real=real)
    assert_close(got[1:], torch.tensor([[0, 1, 0, 0], [0, H, H, 0], [0, 0, 0, 1]]).double(), "rounding")


@pytest.mark.parametrize("causal", [False, True])
def test_rows_are_blocks(causal: bool, generator: torch.Generator) -> None:
    q, k, v = cases.draw_qkv(N, generator)
    blocks = mf.attend(mf.mechanism("block_local", block=WIDTH), q, k, v, causal=causal)
    assert_close(mf.attend(axial("row"), q, k, v, causal=causal), blocks, "rounding")


@pytest.mark.parametrize("causal", [False, True])
def test_columns_are_strides(causal: bool, generator: torch.Generator) -> None:
    """The mask of a stride of one row: distances that are multiples of it."""
    q, k, v = cases.draw_qkv(N, generator)
    distance = torch.arange(N)[:, None] - torch.arange(N)
    stride = (distance.remainder(WIDTH) == 0) & ((distance >= 0) | (not causal))
    expected = masked_softmax(scaled_scores(q, k), stride[None, None]) @ v
    columns = mf.attend(axial("column"), q, k, v, causal=causal)
    assert_close(columns, expected, "parity")
    atom = mf.attend(mf.mechanism("strided", stride=WIDTH), q, k, v, causal=causal)
    assert_close(columns, atom, "rounding")


def test_a_row_layer_and_a_column_layer_reach_everything() -> None:
    rows, columns = shown(axial("row"), False).double(), shown(axial("column"), False).double()
    assert (rows @ columns > 0).all()
    assert (columns @ rows > 0).all()
    assert not (rows + columns > 0).all()


def test_masked_rows_and_columns_alone_miss_pixels() -> None:
    """Why the image block shifts: whatever lies above and to the right is never reached."""
    step = (shown(axial("row"), True) | shown(axial("column"), True)).double()
    reached = torch.linalg.matrix_power(step, N) > 0
    pixel, above_right = 2 * WIDTH + 3, WIDTH + 4
    assert not reached[pixel, above_right]
    assert reached[pixel, WIDTH + 3]


def test_grids_that_do_not_match_are_named() -> None:
    q, k, v = (torch.zeros(1, 1, N, 2) for _ in range(3))
    for causal, height in ((False, HEIGHT - 1), (False, HEIGHT + 1), (True, HEIGHT - 1)):
        with pytest.raises(mf.MapformersError, match=f"axial: height={height} and width=7 .* got 35 tokens"):
            mf.attend(axial("row", height=height), q, k, v, causal=causal)
    mf.attend(axial("row", height=HEIGHT), q, k, v)
    mf.attend(axial("row", height=HEIGHT + 1), q, k, v, causal=True)  # a prefix of the image


def test_a_grid_bounds_what_decoding_keeps(generator: torch.Generator) -> None:
    layer = cases.layer("axial(axis=column, width=7, height=5)", generator, causal=True)
    x = cases.draw((2, N, cases.DIM), generator)
    state, outputs = layer.init_state(2), []
    with torch.no_grad():
        for t in range(N):
            y, state = layer.step(x[:, t : t + 1], state)
            outputs.append(y)
        assert_close(torch.cat(outputs, 1), layer(x), "decode")
        with pytest.raises(mf.MapformersError, match="axial: height=5"):
            layer.step(x[:, :1], state)


@pytest.mark.parametrize("option", ["width", "height"])
def test_sizes_are_refused_by_name(option: str) -> None:
    with pytest.raises(mf.MapformersError, match=f"axial: {option} must be"):
        mf.mechanism("axial", **{option: -1})
