"""Local attention on images: by hand, against the rectangle in raster order, and the trap of raster order."""

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.core.mechanism import Mechanism
from mapformers.kernels.softmax import masked_softmax, scaled_scores
from mapformers.mechanisms.sparse.grid import Blocks, cells, generation_order, raster_order
from tests.contract import cases
from tests.mechanisms.test_by_hand import H, Q, T, assert_rows, weights_by_probing
from tests.tolerances import assert_close

HEIGHT, WIDTH = 7, 10
BLOCK, MEMORY = (3, 4), (2, 3)  # neither divides the image
N = HEIGHT * WIDTH


def image_local(height: int = HEIGHT) -> Mechanism:
    return mf.mechanism(
        "image_local",
        width=WIDTH,
        height=height,
        query_height=BLOCK[0],
        query_width=BLOCK[1],
        memory_height=MEMORY[0],
        memory_width=MEMORY[1],
    )


def in_memory(query: int, key: int) -> bool:
    """Whether raster pixel `key` lies in the memory block of raster pixel `query`."""
    (row, column), (i, j) = divmod(query, WIDTH), divmod(key, WIDTH)
    top, left = row // BLOCK[0] * BLOCK[0], column // BLOCK[1] * BLOCK[1]
    rows = range(top - MEMORY[0], top + BLOCK[0])
    return i in rows and j in range(left - MEMORY[1], left + BLOCK[1] + MEMORY[1])


def memory_map() -> Tensor:
    """[N, N] in raster order."""
    return torch.tensor([[in_memory(i, j) for j in range(N)] for i in range(N)])


def generated() -> list[int]:
    """Raster pixels in generation order, block by block."""
    order = []
    for top in range(0, HEIGHT, BLOCK[0]):
        for left in range(0, WIDTH, BLOCK[1]):
            for row in range(top, min(HEIGHT, top + BLOCK[0])):
                order += [row * WIDTH + c for c in range(left, min(WIDTH, left + BLOCK[1]))]
    return order


def test_one_dimension_by_hand() -> None:
    """Blocks of two tokens; the memory adds one token, to the left only while causal."""
    line = mf.mechanism(
        "image_local", width=0, query_height=1, query_width=2, memory_height=0, memory_width=1
    )
    assert_rows(line, True, [[1, 0, 0, 0], [H, H, 0, 0], [0, H, H, 0], [0, T, T, T]])
    assert_rows(line, False, [[T, T, T, 0], [T, T, T, 0], [0, T, T, T], [0, T, T, T]])


def test_two_dimensions_by_hand() -> None:
    """Two rows of two. Blocks of two rows and one column: the tokens stand as 0 2 / 1 3, and the second block
    remembers the first. Blocks of one pixel that remember the row above: 0 1 / 2 3, columns alone.
    """
    upright = mf.mechanism(
        "image_local", width=2, query_height=2, query_width=1, memory_height=0, memory_width=1
    )
    assert_rows(upright, True, [[1, 0, 0, 0], [H, H, 0, 0], [T, T, T, 0], [Q] * 4])
    alone = mf.mechanism(
        "image_local", width=2, query_height=1, query_width=1, memory_height=1, memory_width=0
    )
    assert_rows(alone, True, [[1, 0, 0, 0], [0, 1, 0, 0], [H, 0, H, 0], [0, H, 0, H]])


def test_generation_order_is_block_by_block() -> None:
    order, back = (f(HEIGHT, WIDTH, *BLOCK) for f in (generation_order, raster_order))
    assert order.tolist() == generated()
    assert order[back].tolist() == list(range(N))
    at = cells(torch.arange(N), Blocks(HEIGHT, WIDTH, *BLOCK))
    assert (at.row * WIDTH + at.column).tolist() == generated()


@pytest.mark.parametrize("causal", [False, True])
def test_an_image_in_raster_order_sees_its_memory_block(causal: bool, generator: torch.Generator) -> None:
    """Brought into generation order and back, attention is the memory map, masked by generation order."""
    q, k, v = cases.draw_qkv(N, generator)
    order, back = generation_order(HEIGHT, WIDTH, *BLOCK), raster_order(HEIGHT, WIDTH, *BLOCK)
    y = mf.attend(image_local(), q[:, :, order], k[:, :, order], v[:, :, order], causal=causal)
    earlier = back[None, :] <= back[:, None]
    seen = memory_map() & earlier if causal else memory_map()
    expected = masked_softmax(scaled_scores(q, k), seen[None, None]) @ v
    assert_close(y[:, :, back], expected, "parity")


def test_a_raster_mask_would_leak_and_miss() -> None:
    back = raster_order(HEIGHT, WIDTH, *BLOCK)
    raster, earlier = torch.ones(N, N).tril().bool(), back[None, :] <= back[:, None]
    leaks, misses = memory_map() & raster & ~earlier, memory_map() & earlier & ~raster
    assert leaks.any()
    assert misses.any()
    pixel, above_right = WIDTH + 3, 4  # the block beside is generated later, its first row comes earlier
    assert leaks[pixel, above_right]
    zero = torch.zeros(1, 1, N, 2, dtype=torch.float64)
    shown = weights_by_probing(image_local(), zero, zero, True)[back][:, back] > 0
    assert not (shown & leaks).any()
    assert (shown & misses).sum() == misses.sum()


def test_the_lower_border_needs_the_height() -> None:
    """Seven rows in bands of three: with the height known, the last band is one row of blocks of one row."""
    zero = torch.zeros(1, 1, N, 2, dtype=torch.float64)
    known, unknown = (weights_by_probing(image_local(h), zero, zero, False) for h in (HEIGHT, 0))
    last = 2 * BLOCK[0] * WIDTH
    assert torch.equal(known[:last, :last], unknown[:last, :last])
    assert not torch.equal(known[last:], unknown[last:])


def test_grids_that_do_not_match_are_named() -> None:
    q, k, v = (torch.zeros(1, 1, N, 2) for _ in range(3))
    for causal, height in ((False, 6), (False, 8), (True, 6)):
        with pytest.raises(mf.MapformersError, match=f"image_local: height={height} and width=10 .* got 70"):
            mf.attend(image_local(height), q, k, v, causal=causal)


@pytest.mark.parametrize(
    "options",
    [
        {"width": -1},
        {"query_height": 0},
        {"query_width": 0},
        {"memory_height": -1},
        {"memory_width": -1},
        {"width": 0},
        {"width": 0, "query_height": 1, "memory_height": 0, "height": 1},
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(mf.MapformersError, match=r"image_local: .*; "):
        mf.mechanism("image_local", **options)


def test_decoding_an_image_with_a_lower_last_band(generator: torch.Generator) -> None:
    text = "image_local(width=5, height=7, query_height=3, query_width=2, memory_height=4, memory_width=1)"
    layer = cases.layer(text, generator, causal=True)
    x = cases.draw((2, 35, cases.DIM), generator)
    state, outputs = layer.init_state(2), []
    with torch.no_grad():
        for part in x.split([1, 1, 9, 1, 20, 1, 2], 1):
            y, state = layer.step(part, state)
            outputs.append(y)
        assert_close(torch.cat(outputs, 1), layer(x), "decode")
