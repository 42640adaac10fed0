"""The axial image model: which pixel depends on which, seen by gradients."""

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.core.carry import Carry
from tests.contract import cases
from tests.tolerances import assert_close

HEIGHT, WIDTH = 4, 5
N = HEIGHT * WIDTH


def dependencies(block: torch.nn.Module, n: int, generator: torch.Generator) -> Tensor:
    """[n, n] bool, whether output t depends on pixel s."""
    x = cases.draw((1, n, cases.DIM), generator).requires_grad_()
    y = block(x, Carry())[0]
    weight = cases.draw((1, cases.DIM), generator)[0]
    rows = [torch.autograd.grad((y[0, t] * weight).sum(), x, retain_graph=True)[0] for t in range(n)]
    return torch.stack([row[0].ne(0).any(-1) for row in rows])


@pytest.mark.parametrize(("outer", "inner"), [(1, 1), (2, 2)])
def test_a_pixel_depends_on_exactly_the_pixels_before_it(
    outer: int, inner: int, generator: torch.Generator
) -> None:
    text = f"axial_image(width={WIDTH}, height={HEIGHT}, outer={outer}, inner={inner})"
    block = cases.block(text, generator, causal=True)
    assert torch.equal(dependencies(block, N, generator), torch.ones(N, N).tril(-1).bool())


def test_without_the_shift_a_pixel_depends_on_itself_too(generator: torch.Generator) -> None:
    text = f"axial_image(width={WIDTH}, height={HEIGHT}, outer=1, inner=1, shift=false)"
    block = cases.block(text, generator, causal=True)
    assert torch.equal(dependencies(block, N, generator), torch.ones(N, N).tril().bool())


def test_without_causality_every_pixel_sees_every_other(generator: torch.Generator) -> None:
    block = cases.block(f"axial_image(width={WIDTH}, outer=1, inner=1)", generator, causal=False)
    assert dependencies(block, N, generator).all()


def test_a_prefix_of_the_image_gives_a_prefix_of_the_outputs(generator: torch.Generator) -> None:
    block = cases.block(f"axial_image(width={WIDTH}, height={HEIGHT})", generator, causal=True)
    x = cases.draw((2, N, cases.DIM), generator)
    whole = block(x, Carry())[0]
    for n in (1, WIDTH, WIDTH + 3, N - 1):
        assert_close(block(x[:, :n], Carry())[0], whole[:, :n], "rounding", f"{n} pixels")


def test_the_two_shifts_by_hand(generator: torch.Generator) -> None:
    """Six pixels, two rows: what goes into the inner decoder."""
    block = cases.block("axial_image(width=3, outer=1, inner=1)", generator, causal=True)
    x = cases.draw((1, 6, cases.DIM), generator)
    above, seen = x, []
    for layer in block.outer:
        above, _ = layer(above, Carry())
    block.inner[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    block(x, Carry())
    zero = torch.zeros_like(x[0, 0])
    right = torch.stack([zero, x[0, 0], x[0, 1], zero, x[0, 3], x[0, 4]])
    down = torch.stack([zero, zero, zero, above[0, 0], above[0, 1], above[0, 2]])
    assert_close(seen[0][0], right + down, "rounding")


def test_refusals_name_the_block() -> None:
    with pytest.raises(mf.MapformersError, match=r"axial_image: height=4 and width=5 must match .* got 19"):
        mf.block("axial_image(width=5, height=4)", 32, 4)(torch.zeros(1, 19, 32), Carry())
    with pytest.raises(mf.MapformersError, match=r"axial_image: height=4 and width=5 must hold .* got 21"):
        mf.block("axial_image(width=5, height=4)", 32, 4, causal=True)(torch.zeros(1, 21, 32), Carry())
    for option in ("outer=0", "inner=0", "width=0", "height=-1", "hidden=-1"):
        with pytest.raises(mf.MapformersError, match=f"axial_image: {option.split('=')[0]} must be"):
            mf.block(f"axial_image({option})", 32, 4)
