"""Causal sums on the native kernel equal the torch path: outputs, gradients and what is carried on."""

import itertools

import pytest
import torch
from torch import Tensor

from mapformers.kernels.native.library import load, torch_kernels
from mapformers.kernels.scan import STRETCH, Marks, Scanned, scan
from mapformers.kernels.scan_tile import CHUNK
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(load().library is None, reason=f"no native kernel: {load().reason}")

LENGTHS = (1, 2, 17, CHUNK - 1, CHUNK, CHUNK + 1, 300)
SIZES = ((5, 3, 2), (16, 8, 17), (70, 20, 33))  # features, input, values
FORMS = ("plain", "marks", "exponents")
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Marks | None, Tensor | None]


def drawn(rows: int, n: int, sizes: tuple[int, int, int], form: str, dtype: torch.dtype) -> Inputs:
    """Random inputs; a key of weight zero where there are marks."""
    generator = torch.Generator().manual_seed(n)
    features, dim, value_dim = sizes

    def draw(*shape: int) -> Tensor:
        return (0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)

    width = dim if form == "exponents" else features
    a, b, values = draw(rows, n, width), draw(rows, n, width), draw(rows, n, value_dim)
    sums, exponents = draw(rows, features, value_dim), draw(features, dim)
    if form == "plain":
        return a, b, values, sums, None, None
    fading = -draw(rows, n).abs() / 8
    faded = torch.cat([part.cumsum(-1) for part in fading.split(STRETCH, -1)], -1)
    mark = draw(rows, n) - faded
    mark[:, n // 2] = float("-inf") if n > 2 else 0.0
    marks = Marks(mark, faded, draw(rows))
    return a, b, values, sums, marks, exponents if form == "exponents" else None


def outcome(inputs: Inputs) -> tuple[Scanned, dict[str, Tensor]]:
    """Results, and gradients of all inputs with regard to all results."""
    a, b, values, sums, marks, exponents = inputs
    named = {"a": a, "b": b, "values": values, "sums": sums} | ({} if marks is None else marks._asdict())
    named = {name: x.clone().requires_grad_() for name, x in named.items()}
    leaves = list(named.values())
    found = scan(*leaves[:4], Marks(*leaves[4:]) if marks is not None else None, exponents)
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros((), dtype=a.dtype)
    for x in (found.y, found.sums, found.level):
        if x is not None:
            total = (
                total + (x * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)).sum()
            )
    grads = torch.autograd.grad(total, leaves)
    return found, dict(zip(named, grads, strict=True))


def agrees(inputs: Inputs, what: str) -> None:
    found, slopes = outcome(inputs)
    with torch_kernels():
        expected, expected_slopes = outcome(inputs)
    for name, x, y in zip(Scanned._fields, found, expected, strict=True):
        assert (x is None) == (y is None), name
        if x is not None and y is not None:
            assert_close(x, y, "parity", f"{what}, {name}")
    for name, x in slopes.items():
        assert_close(x, expected_slopes[name], "gradient", f"{what}, gradient of {name}")


@pytest.mark.parametrize("form", FORMS)
def test_native_equals_torch(form: str) -> None:
    for n, sizes in itertools.product(LENGTHS, SIZES):
        agrees(drawn(3, n, sizes, form, torch.float64), f"{n} tokens, sizes {sizes}")


def test_beyond_a_stretch() -> None:
    for form in FORMS:
        agrees(drawn(2, STRETCH + 70, SIZES[1], form, torch.float64), form)


def test_single_precision() -> None:
    """Held against the formula in float64, at the sizes of a performer."""
    sizes = (256, 64, 65)
    for form in ("marks", "exponents"):
        wide = drawn(2, 130, sizes, form, torch.float64)
        a, b, values, sums, marks, exponents = wide
        assert marks is not None
        narrow = (
            *(x.float() for x in (a, b, values, sums)),
            Marks(*(x.float() for x in marks)),
            None if exponents is None else exponents.float(),
        )
        found, slopes = outcome(narrow)  # type: ignore[arg-type]
        with torch_kernels():
            expected, expected_slopes = outcome(wide)
        # Sums of 256 features have a size of their own: rounding is held against the largest.
        for x, y in ((found.y, expected.y), *((slopes[name], expected_slopes[name]) for name in slopes)):
            assert_close(x / y.abs().max(), y / y.abs().max(), "gradient", form)


def test_threads_do_not_matter() -> None:
    inputs = drawn(5, 100, SIZES[1], "exponents", torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one, slopes = outcome(inputs)
        torch.set_num_threads(2)
        two, other_slopes = outcome(inputs)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one.y, two.y)
    assert all(torch.equal(x, other_slopes[name]) for name, x in slopes.items())


def test_no_tokens() -> None:
    a, b, values, sums, _, _ = drawn(2, 1, SIZES[0], "plain", torch.float64)
    found = scan(a[:, :0], b[:, :0], values[:, :0], sums)
    assert found.y.shape == (2, 0, 2)
    assert torch.equal(found.sums, sums)
