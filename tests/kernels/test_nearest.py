"""Nearest centroids: the native search against the definition."""

import pytest
import torch

from mapformers.kernels.native.library import load, torch_kernels
from mapformers.kernels.native.nearest import MOST_NEAREST
from mapformers.kernels.nearest import cosines, first_best, nearest

needs_native = pytest.mark.skipif(load().library is None, reason=f"no native kernel: {load().reason}")


def unit(*shape: int, generator: torch.Generator) -> torch.Tensor:
    rest = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(rest - rest.mean(-1, keepdim=True), dim=-1)


@needs_native
@pytest.mark.parametrize("dim", [3, 16, 20, 64, 130])
@pytest.mark.parametrize("clusters", [1, 5, 16, 33])
@pytest.mark.parametrize("n", [1, 31, 200])
def test_native_equals_torch(n: int, clusters: int, dim: int, generator: torch.Generator) -> None:
    x = torch.randn(2, n, 4, dim, generator=generator, dtype=torch.float64).transpose(1, 2) + 0.5
    mu, bias = unit(2, clusters, dim, generator=generator), torch.randn(2, clusters, generator=generator) / 10
    count = min(3, clusters)
    native = nearest(x, mu, bias, count)
    with torch_kernels():
        assert torch.equal(native, nearest(x, mu, bias, count))


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_types_choose_as_well(dtype: torch.dtype, generator: torch.Generator) -> None:
    """Not always the same index, but one that is as near up to rounding."""
    x = torch.randn(1, 2, 500, 32, generator=generator).to(dtype)
    mu = unit(2, 16, 32, generator=generator).float()
    similarity = cosines(x.double(), mu.double())
    chosen = similarity.gather(-1, nearest(x, mu, torch.zeros(2, 16), 1)).squeeze(-1)
    assert (similarity.amax(-1) - chosen).max() < 1e-6


@needs_native
def test_ties_go_to_the_lowest_index() -> None:
    x = torch.zeros(1, 1, 3, 16)
    mu = torch.eye(16)[None, [4, 4, 7, 4]]
    assert nearest(x, mu, torch.tensor([[0.0, 1.0, 1.0, 0.0]]), 4).tolist() == [[[[1, 2, 0, 3]] * 3]]
    x[..., 4] = 1.0
    assert nearest(x, mu, torch.zeros(1, 4), 3).tolist() == [[[[0, 1, 3]] * 3]]


def test_many_centroids_per_vector_run_on_torch(generator: torch.Generator) -> None:
    x, mu = torch.randn(1, 1, 5, 16, generator=generator), unit(1, 20, 16, generator=generator).float()
    count = MOST_NEAREST + 1
    assert torch.equal(nearest(x, mu, torch.zeros(1, 20), count), first_best(cosines(x, mu), count))
