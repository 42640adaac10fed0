"""nsa: by hand, each branch alone against the mechanism that it is, the choice of a group of heads."""

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.core.mechanism import Mechanism, Shape
from mapformers.core.plans import Pooled, WeightedSum, Windows
from mapformers.core.scope import Scope
from tests.mechanisms.test_by_hand import weights_by_probing
from tests.tolerances import assert_close

BRANCHES = {"compressed": 0, "selected": 1, "sliding": 2}
OPEN, SHUT = 50.0, -800.0  # the sigmoid is 1 and 0 to 1e-21 and better


def nsa(shape: Shape, **options: int) -> Mechanism:
    return mf.mechanism("nsa", **options).bind(shape).double()


def alone(branch: str, shape: Shape, **options: int) -> Mechanism:
    """One gate wide open, the others shut."""
    made = nsa(shape, **options)
    with torch.no_grad():
        made.gate_bias.fill_(SHUT)
        made.gate_bias[..., BRANCHES[branch]] = OPEN
    return made


def test_by_hand() -> None:
    """All scores equal, all gates half open, blocks of two, a window of one token before."""
    x = torch.zeros(1, 1, 4, 2, dtype=torch.float64)
    compressed = [[0, 0, 0, 0], [1 / 2, 1 / 2, 0, 0], [1 / 2, 1 / 2, 0, 0], [1 / 4, 1 / 4, 1 / 4, 1 / 4]]
    selected = [[1, 0, 0, 0], [1 / 2, 1 / 2, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0], [1 / 4, 1 / 4, 1 / 4, 1 / 4]]
    sliding = [[1, 0, 0, 0], [1 / 2, 1 / 2, 0, 0], [0, 1 / 2, 1 / 2, 0], [0, 0, 1 / 2, 1 / 2]]
    expected = torch.tensor([compressed, selected, sliding], dtype=torch.float64).sum(0) / 2
    made = nsa(Shape(1, 1, 2), block=2, top=1, window=1)
    assert_close(weights_by_probing(made, x, x, True), expected, "parity", "plan")
    assert_close(mf.dense_weights(made, x, x, causal=True)[0, 0], expected, "parity", "definition")


@pytest.mark.parametrize(
    ("branch", "other"), [("sliding", "band(window=5)"), ("selected", "moba(block=4, top=2)")]
)
def test_a_branch_alone_is_a_mechanism_of_its_own(
    branch: str, other: str, generator: torch.Generator
) -> None:
    """With a key/value head for every head, the largest weight belongs to the largest score."""
    q, k, v = torch.randn(3, 2, 2, 41, 8, generator=generator, dtype=torch.float64)
    made = alone(branch, Shape(2, 2, 8), block=4, top=2, window=5)
    name, options = other.split("(")
    numbers = dict(one.split("=") for one in options.rstrip(")").split(", "))
    same = mf.mechanism(name, **{key: int(value) for key, value in numbers.items()})
    assert_close(mf.attend(made, q, k, v, causal=True), mf.attend(same, q, k, v, causal=True), "parity")


def test_the_compressed_branch_alone_is_attention_to_pooled_tokens(generator: torch.Generator) -> None:
    q, k, v = torch.randn(3, 1, 1, 12, 8, generator=generator, dtype=torch.float64)
    made = alone("compressed", Shape(1, 1, 8), block=4, top=1, window=0)
    with torch.no_grad():
        for weight in (made.key_weight, made.value_weight):
            weight.copy_(torch.randn(weight.shape, generator=generator))
    pooled_k = torch.einsum("sbd,b->sd", k[0, 0].view(3, 4, 8), made.key_weight[0])
    pooled_v = torch.einsum("sbd,b->sd", v[0, 0].view(3, 4, 8), made.value_weight[0])
    seen = mf.attend(made, q, k, v, causal=True)[0, 0]
    assert not seen[:3].any()
    for i in range(3, 12):
        whole = (i + 1) // 4
        weights = (q[0, 0, i] @ pooled_k[:whole].T / 8**0.5).softmax(-1)
        assert_close(seen[i], weights @ pooled_v[:whole], "parity", f"query {i}")


def test_heads_of_a_group_choose_together() -> None:
    """Head 0 likes block 1 a little, head 1 likes block 0 very much: both read block 0."""
    k = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-9.0, -9.0], [0.0, 0.0]], dtype=torch.float64)[None, None]
    q = torch.tensor([[0.1, 0.2], [9.0, 0.0]], dtype=torch.float64)[None, :, None].expand(1, 2, 4, 2)
    plan = nsa(Shape(2, 1, 2), block=1, top=1, window=0).plan(q, k, Scope.of(True))
    assert isinstance(plan, WeightedSum)
    compressed, selected, _ = plan.parts
    assert isinstance(compressed, Pooled)
    assert isinstance(selected, Windows)
    assert selected.query_segment is not None
    assert selected.query_segment[0, :, 3].tolist() == [[3, 0], [3, 0]]
    apart = nsa(Shape(2, 2, 2), block=1, top=1, window=0).plan(q, k.expand(1, 2, 4, 2), Scope.of(True))
    assert isinstance(apart, WeightedSum)
    assert isinstance(apart.parts[1], Windows)
    assert apart.parts[1].query_segment is not None
    assert apart.parts[1].query_segment[0, :, 3].tolist() == [[3, 1], [3, 0]]


def test_pooling_and_gates_learn(generator: torch.Generator) -> None:
    q, k, v = torch.randn(3, 1, 2, 20, 8, generator=generator, dtype=torch.float64)
    made = nsa(Shape(2, 2, 8), block=4, top=2, window=3)
    mf.attend(made, q, k, v, causal=True).square().sum().backward()
    assert [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(("name", "value", "least"), [("block", 0, 1), ("top", 0, 1), ("window", -1, 0)])
def test_bad_input(name: str, value: int, least: int) -> None:
    with pytest.raises(mf.MapformersError, match=f"nsa: {name} must be {least} or more, got {value}"):
        mf.mechanism("nsa", **{name: value})


def test_it_is_causal_only(generator: torch.Generator) -> None:
    q: Tensor = torch.randn(1, 1, 8, 4, generator=generator)
    with pytest.raises(mf.MapformersError, match="nsa: bidirectional is not supported"):
        mf.attend(mf.mechanism("nsa"), q, q, q, causal=False)
