"""The native operators as torch sees them: schema, autograd, fake tensors, torch.compile, threads."""

import pytest
import torch

import mapformers as mf
from mapformers.kernels.native import call
from mapformers.kernels.native.library import library, load
from mapformers.kernels.native.nearest import native_nearest
from mapformers.kernels.native.op import range_attention
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(load().library is None, reason=f"no native kernel: {load().reason}")
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


def test_torch_accepts_the_operators(generator: torch.Generator) -> None:
    q, k, v = (torch.randn(1, 2, 20, 16, generator=generator).requires_grad_() for _ in range(3))
    here = torch.arange(20, dtype=torch.int32)[None, None, None]
    ranges = (None, None, (here - 4).clamp(min=0), here + 1)
    arguments = (q, k, v, *ranges, None, None, None, None, 0, 1, 0.25)
    torch.library.opcheck(range_attention, arguments, test_utils=CHECKS)
    centroids, bias = torch.randn(1, 3, 16, generator=generator), torch.zeros(1, 3)
    found = (q.detach(), centroids, bias, 2, 1e-12)
    torch.library.opcheck(native_nearest, found, test_utils=CHECKS[::2])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the compiler itself
def test_compiled_layers_compute_the_same(generator: torch.Generator) -> None:
    layer = mf.attention("band(window=16)", dim=64, heads=4, causal=True)
    x = torch.randn(1, 100, 64, generator=generator).requires_grad_()
    results = []
    for module in (layer, torch.compile(layer)):
        y = module(x)
        results.append((y, torch.autograd.grad(y.square().sum(), x)[0]))
    assert_close(results[1][0], results[0][0], "parity")
    assert_close(results[1][1], results[0][1], "gradient")


@pytest.mark.parametrize("heads", [1, 3])
def test_threads_and_repeats_change_nothing(heads: int, generator: torch.Generator) -> None:
    """The same from run to run, bit for bit; for one and two threads to rounding."""
    q, k, v, grad = (torch.randn(1, heads, 900, 32, generator=generator) for _ in range(4))
    here = torch.arange(900, dtype=torch.int32)[None, None, None]
    pattern = call.Pattern(None, None, (here - 99).clamp(min=0), here + 1)
    runs = []
    for threads in (1, 2, 2):
        inputs = call.Inputs(q, k, v, pattern, 32**-0.5, threads)
        attended = call.forward(library(), inputs)
        slopes = call.backward(library(), inputs, attended, (grad, None))
        runs.append((*attended, slopes.q, slopes.k, slopes.v))
    for one, two, again in zip(*runs, strict=True):
        assert torch.equal(two, again)
        assert_close(two, one, "rounding")
