"""The distilling layer of Informer: by hand, against torch, and padding of any kind."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mapformers.blocks.distilling import Distilling
from mapformers.core.errors import MapformersError
from tests.contract import cases
from tests.tolerances import assert_close

DIM = 6
LENGTHS = (1, 2, 3, 4, 5, 16, 17)


@pytest.fixture
def layer(generator: torch.Generator) -> Distilling:
    made = Distilling(DIM, generator).double()
    cases.stir(made, generator)
    return made


def test_by_hand() -> None:
    """Two channels (x, -x) and the middle tap alone: the norm leaves signs, ELU makes 1 or exp(-1) - 1."""
    made = Distilling(2, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        made.weight.zero_()[:, :, 1] = torch.eye(2)
    x = torch.tensor([5.0, -5, -5, -5, -5, 5]).double()
    y, real = made(torch.stack((x, -x), -1)[None] * 1e6)
    expected = torch.tensor([[1, 1], [math.exp(-1) - 1, 1], [1, 1]], dtype=torch.float64)
    assert real is None
    assert_close(y[0], expected, "parity")


@pytest.mark.parametrize("n", LENGTHS)
def test_against_the_layers_of_torch(n: int, layer: Distilling, generator: torch.Generator) -> None:
    x = cases.draw((2, n, DIM), generator)
    convolution = nn.utils.skip_init(nn.Conv1d, DIM, DIM, 3, padding=1).double()
    convolution.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    normed = F.layer_norm(convolution(x.mT).mT, (DIM,), layer.norm.weight, layer.norm.bias)
    expected = nn.MaxPool1d(3, 2, 1)(F.elu(normed).mT).mT
    assert expected.shape[1] == (n + 1) // 2
    assert_close(layer(x)[0], expected, "parity")
    assert_close(layer(x, torch.ones(2, n, dtype=torch.bool))[0], expected, "parity")


@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("n", LENGTHS)
def test_padding_on_any_side_equals_none(
    side: str, n: int, layer: Distilling, generator: torch.Generator
) -> None:
    """Padding of any amount and of huge content, on one side or in the middle too."""
    x = cases.draw((2, n, DIM), generator)
    expected, _ = layer(x)
    for count in (1, 2, 7):
        place = {"left": torch.arange(n) + count, "right": torch.arange(n)}.get(side)
        place = torch.randperm(n + count, generator=generator)[:n].sort().values if place is None else place
        padded = 1e30 * cases.draw((2, n + count, DIM), generator)
        padded[:, place] = x
        real = torch.zeros(2, n + count, dtype=torch.bool)
        real[:, place] = True
        y, still = layer(padded, real)
        assert y.shape[1] == (n + count + 1) // 2
        assert_close(y[:, : expected.shape[1]], expected, "rounding")
        assert still[:, : expected.shape[1]].all()
        assert not still[:, expected.shape[1] :].any()
        assert not y[:, expected.shape[1] :].any()


def test_rows_do_not_know_each_other(layer: Distilling, generator: torch.Generator) -> None:
    x = cases.draw((1, 11, DIM), generator)
    alone = layer(x)[0]
    for neighbour in (1e6 * x, torch.zeros_like(x)):
        assert_close(layer(torch.cat([neighbour, x]))[0][1:], alone, "rounding")


def test_the_ends_do_not_know_each_other(layer: Distilling, generator: torch.Generator) -> None:
    x = cases.draw((1, 12, DIM), generator)
    other = torch.cat([x[:, :8], cases.draw((1, 4, DIM), generator)], 1)
    assert_close(layer(other)[0][:, :3], layer(x)[0][:, :3], "rounding")


def test_gradients_are_finite_and_padding_has_none(layer: Distilling, generator: torch.Generator) -> None:
    x = cases.draw((3, 9, DIM), generator).requires_grad_()
    real = cases.mask("holes", 9, generator, batch=3)
    real[2] = False
    y, _ = layer(x, real)
    assert not y[2].any()
    y.square().sum().backward()
    gradients: list[Tensor | None] = [x.grad, *(p.grad for p in layer.parameters())]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert x.grad is not None
    assert not x.grad[~real].any()


def test_nothing_uses_the_global_random_state() -> None:
    before = torch.get_rng_state()
    first, again = (Distilling(DIM, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(before, torch.get_rng_state())


def test_bad_input(layer: Distilling) -> None:
    with pytest.raises(MapformersError, match="distilling: dim must be 1 or more, got 0"):
        Distilling(0, torch.Generator())
    with pytest.raises(MapformersError, match=r"distilling: x must have shape \[batch, tokens, 6\], got"):
        layer(torch.zeros(2, 3, 5).double())
    with pytest.raises(MapformersError, match=r"distilling: x must have shape"):
        layer(torch.zeros(2, 0, DIM).double())
    with pytest.raises(MapformersError, match="distilling: key_is_real must be bool"):
        layer(torch.zeros(2, 3, DIM).double(), torch.ones(2, 3))
