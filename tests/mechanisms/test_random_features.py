"""Random features of the exponential kernel: Haar rows, the rate of the error, large inputs."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mapformers.kernels.exponential import Exponential, exponential
from mapformers.mechanisms.linear.random_features import orthogonal_rows
from tests.tolerances import assert_close

DIM = 16


def raw_rows(count: int, dim: int, generator: torch.Generator) -> Tensor:
    """As the public codes draw them: the signs of QR are left as LAPACK gives them."""
    q, _ = torch.linalg.qr(torch.randn(count // dim, dim, dim, generator=generator))
    lengths = torch.randn(count, dim, generator=generator).norm(dim=-1, keepdim=True)
    return q.transpose(-1, -2).flatten(0, 1) * lengths


def kernel_error(rows: Tensor, two_sided: bool = False) -> float:
    """Relative error in norm of the kernel matrix of 64 small queries and keys."""
    generator = torch.Generator().manual_seed(1)
    q, k = (0.3 * torch.randn(64, DIM, generator=generator, dtype=torch.float64) for _ in range(2))
    rows = (torch.cat([rows, -rows]) if two_sided else rows).double()
    phi_q, phi_k = ((x / DIM**0.25 @ rows.T - x.square().sum(-1, True) / 2 / DIM**0.5).exp() for x in (q, k))
    estimate = phi_q @ phi_k.T / len(rows)
    exact = (q @ k.T / DIM**0.5).exp()
    return float((estimate - exact).norm() / exact.norm())


def mean_error(
    draw: Callable[[int, int, torch.Generator], Tensor], count: int, two_sided: bool = False
) -> float:
    generator = torch.Generator().manual_seed(2)
    return sum(kernel_error(draw(count, DIM, generator), two_sided) for _ in range(8)) / 8


def test_a_block_is_orthogonal_and_the_last_one_is_cut() -> None:
    rows = orthogonal_rows(21, 8, torch.Generator().manual_seed(0)).double()
    assert rows.shape == (21, 8)
    for block in rows.split(8):
        unit = block / block.norm(dim=-1, keepdim=True)
        assert_close((unit @ unit.T).float(), torch.eye(len(block)), "rounding")


def test_no_entry_leans_to_one_side() -> None:
    count = 512
    generator = torch.Generator().manual_seed(0)
    rows = orthogonal_rows(count * DIM, DIM, generator).view(count, DIM, DIM)
    raw = raw_rows(count * DIM, DIM, generator).view(count, DIM, DIM)
    limit = 6 / count**0.5  # six standard errors of a mean of unit normals
    assert rows.mean(0).abs().max() < limit
    assert raw.mean(0).abs().max() > limit


@pytest.mark.parametrize("two_sided", [False, True])
def test_the_error_falls_with_the_root_of_the_features(two_sided: bool) -> None:
    errors = [mean_error(orthogonal_rows, m, two_sided) for m in (16, 256, 4096)]
    for more, fewer in zip(errors[1:], errors, strict=False):
        assert 1 / 6 < more / fewer < 1 / 2.7, errors  # 1/4 is the rate


def test_raw_qr_stops_converging() -> None:
    assert mean_error(raw_rows, 16384) > 2 * mean_error(orthogonal_rows, 16384)


def test_features_are_exponentials_however_large() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(32, DIM, generator=generator, dtype=torch.float64)
    for size in (1.0, 1e4):
        x = size * torch.randn(3, 5, DIM, generator=generator, dtype=torch.float64)
        features, top = exponential(x, rows)
        assert_close(features.amax(-1), torch.ones(3, 5, dtype=torch.float64), "rounding")
        assert_close(
            features.log().nan_to_num(neginf=-800).clamp(min=-700),
            (x @ rows.T - top.unsqueeze(-1)).clamp(min=-700),
            "parity",
        )


def test_the_gradient_of_all_tokens_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    x = torch.randn(2, 700, 4, generator=generator, dtype=torch.float64).requires_grad_()
    grad = torch.randn(2, 700, 6, generator=generator, dtype=torch.float64)
    features, top = Exponential.apply(x, rows)
    expected = (x @ rows.T - top.unsqueeze(-1)).exp()
    assert_close(features, expected, "rounding")
    ours, theirs = (torch.autograd.grad(y, x, grad)[0] for y in (features, expected))
    assert_close(ours, theirs, "gradient")
