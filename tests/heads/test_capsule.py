"""Capsules against their rounds written out, and the case in which they are concatenation."""

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.core.errors import MapformersError
from mapformers.heads.capsule import Capsule, CapsuleConfig
from mapformers.heads.projection import Sizes
from tests.tolerances import assert_close

SIZES, N = Sizes(dim=12, heads=4, head_dim=5), 7


def made(**options: object) -> Capsule:
    merge = Capsule(CapsuleConfig(**options), SIZES, torch.Generator().manual_seed(0)).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in merge.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return merge


def heads() -> Tensor:
    return torch.randn(2, 4, N, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def votes_of(merge: Capsule, x: Tensor) -> Tensor:
    """[H, capsules, size] of one token x [H, D]."""
    return torch.stack([torch.einsum("d,doe->oe", x[h], merge.votes[h]) for h in range(4)])


def dynamic(merge: Capsule, x: Tensor) -> Tensor:
    votes = votes_of(merge, x)
    b = torch.zeros(votes.shape[:2], dtype=torch.float64)
    for _ in range(merge.config.iterations):
        c = torch.softmax(b, 1)
        y = torch.stack([(c[:, o, None] * votes[:, o]).sum(0) / c[:, o].sum() for o in range(c.shape[1])])
        b = b + (votes * y).sum(-1)
    return y.flatten()


def em(merge: Capsule, x: Tensor) -> Tensor:
    votes = votes_of(merge, x)
    count = votes.shape[1]
    r = torch.full((4, count), 1 / count, dtype=torch.float64)
    for turn in range(merge.config.iterations):
        parts = range(count)
        total = r.sum(0)[:, None] + 1e-8
        mean = torch.stack([(r[:, o, None] * votes[:, o]).sum(0) for o in parts]) / total
        spread = torch.stack([(r[:, o, None] * (votes[:, o] - mean[o]) ** 2).sum(0) for o in parts])
        variance = spread / total + 1e-8
        cost = (merge.beta_u[:, None] + variance.sqrt().log()).sum(-1) * r.sum(0)
        on = torch.sigmoid(merge.config.sharpness * (merge.beta_a - cost))
        if turn + 1 < merge.config.iterations:
            normal = torch.distributions.Normal(mean, variance.sqrt())
            r = torch.softmax(
                torch.stack([on.log() + normal.log_prob(votes[h]).sum(-1) for h in range(4)]), 1
            )
    return (on[:, None] * mean).flatten()


@pytest.mark.parametrize("capsules", [0, 3])
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("routing", ["dynamic", "em"])
def test_it_is_the_routing_written_out(routing: str, iterations: int, capsules: int) -> None:
    merge, x = made(routing=routing, iterations=iterations, capsules=capsules), heads()
    rule = dynamic if routing == "dynamic" else em
    expected = torch.stack([torch.stack([rule(merge, x[b, :, t]) for t in range(N)]) for b in range(2)])
    assert_close(merge(x), expected, "parity", routing)


def test_one_round_is_concatenation() -> None:
    """Equal shares: the mean of votes, which with W[h, o] = H times a slice of W_o is concat(heads) W_o."""
    layer = mf.attention("band(window=3)", 12, 4, head_dim=5, causal=True).double()
    capsule = mf.attention(
        "band(window=3)", 12, 4, head_dim=5, causal=True, merge="capsule(iterations=1)"
    ).double()
    capsule.project.load_state_dict(layer.project.state_dict())
    weight = layer.merge.output.weight  # [dim, H D]
    with torch.no_grad():
        capsule.merge.votes.copy_(4 * weight.T.unflatten(0, (4, 5)).unflatten(-1, (4, 3)))
    x = torch.randn(2, N, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(capsule(x), layer(x), "rounding")


@pytest.mark.parametrize("routing", ["dynamic", "em"])
def test_gradients_are_right_and_half_types_finite(routing: str) -> None:
    merge = made(routing=routing, iterations=2)
    x = heads()[:1, :, :2].requires_grad_()
    assert torch.autograd.gradcheck(merge, (x,))
    half = made(routing=routing).bfloat16()(heads().bfloat16())
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()


def test_capsules_must_divide_dim() -> None:
    with pytest.raises(MapformersError, match="capsule: capsules must divide dim=12, got 5"):
        made(capsules=5)
