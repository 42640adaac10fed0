"""The layer around the mechanisms: ports, mixtures, positions, errors, numbers of parameters."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mapformers as mf
from mapformers.attention.rotary import rotate, rotation
from mapformers.core.score import Pairs, ScoreTerm
from mapformers.kernels.native.library import load, torch_kernels
from tests.contract import cases
from tests.tolerances import assert_close

N = 20


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return cases.draw((2, N, cases.DIM), generator)


def test_a_full_layer_is_multi_head_attention(x: Tensor) -> None:
    """Written out: project, split, scaled dot product, join, project."""
    layer = mf.attention("full", cases.DIM, cases.HEADS, causal=True).double()
    q, k, v = (
        F.linear(x, w.weight).unflatten(-1, (cases.HEADS, -1)).transpose(1, 2)
        for w in (layer.project.query, layer.project.key, layer.project.value)
    )
    scores = q @ k.transpose(-1, -2) / math.sqrt(cases.HEAD_DIM)
    scores = scores.masked_fill(~torch.ones(N, N, dtype=torch.bool).tril(), -math.inf)
    joined = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    assert_close(layer(x), F.linear(joined, layer.merge.output.weight), "parity")


def test_mixtures_give_every_mechanism_its_own_heads(x: Tensor) -> None:
    """Heads 0-1 of the mixture are those of a band layer with its weights, heads 2-3 those of a full one."""
    mixed = mf.attention("band(window=2):2 + full:2", cases.DIM, cases.HEADS, causal=True).double()
    for text, heads in (("band(window=2)", slice(0, 2)), ("full", slice(2, 4))):
        alone = mf.attention(text, cases.DIM, cases.HEADS, causal=True).double()
        alone.load_state_dict(mixed.state_dict())
        columns = slice(heads.start * cases.HEAD_DIM, heads.stop * cases.HEAD_DIM)
        for layer in (mixed, alone):
            with torch.no_grad():
                layer.merge.output.weight.zero_()
                layer.merge.output.weight[:, columns] = torch.eye(cases.DIM)[:, columns].double()
        assert_close(mixed(x), alone(x), "parity", text)


def test_score_terms_know_the_heads_of_a_mixture(x: Tensor) -> None:
    """The same term, layer-wide head numbers: a mixture of two full parts equals one full part."""
    one = mf.attention("full", cases.DIM, cases.HEADS, causal=True, score="alibi").double()
    two = mf.attention("full:1 + full:3", cases.DIM, cases.HEADS, causal=True, score="alibi").double()
    two.load_state_dict(one.state_dict())
    assert_close(two(x), one(x), "parity")


def test_several_score_terms_add_up(x: Tensor) -> None:
    class Constant(ScoreTerm):
        def tile(self, pairs: Pairs) -> Tensor:
            return 0.0 * (pairs.query + pairs.key) + 3.0

    layers = [
        mf.attention("full", cases.DIM, cases.HEADS, score=score).double()
        for score in ("alibi", "alibi + alibi", None, Constant())
    ]
    once, twice, none, constant = (layer(x) for layer in layers)
    assert not torch.equal(once, twice)
    assert_close(constant, none, "parity", "a constant does not change a softmax")


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_projections_are_smaller(kv_heads: int, x: Tensor) -> None:
    layer = mf.attention("full", cases.DIM, cases.HEADS, kv_heads=kv_heads).double()
    named = mf.attention(
        "full", cases.DIM, cases.HEADS, project=f"grouped_query(kv_heads={kv_heads})"
    ).double()
    assert layer.project.key.weight.shape == (kv_heads * cases.HEAD_DIM, cases.DIM)
    assert torch.equal(layer(x), named(x))


def test_head_size_is_free_of_dim(x: Tensor) -> None:
    layer = mf.attention("band(window=3)", cases.DIM, 3, head_dim=10, causal=True, rotary=True).double()
    assert layer.project.query.weight.shape == (30, cases.DIM)
    assert layer(x).shape == x.shape


def turned(x: Tensor, position: int) -> Tensor:
    """All tokens of x turned as if they stood at `position`."""
    return rotate(x, rotation(torch.tensor([[position]]), x.shape[-1], x.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dim", [2, 6, 32, 64])
def test_native_rotation_equals_torch(dim: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Values and gradients, for rows that lie apart in memory, with a positions row for each batch row."""
    x = torch.randn(2, 9, 4, dim, generator=generator).to(dtype).transpose(1, 2).requires_grad_()
    grad = torch.randn(2, 4, 9, dim, generator=generator).to(dtype)
    by = rotation(torch.randint(0, 10_000, (2, 9), generator=generator), dim, dtype)

    def both() -> list[Tensor]:
        y = rotate(x, by)
        return [y, *torch.autograd.grad(y, x, grad)]

    here = both()
    with torch_kernels():
        there = both()
    for ours, theirs in zip(here, there, strict=True):
        assert_close(ours, theirs, "rounding")


def test_rotary_turns_by_true_position(generator: torch.Generator) -> None:
    """A rotated score depends on the difference of positions only, and position 0 turns nothing."""
    q, k = torch.randn(2, 1, 1, 1, 8, generator=generator, dtype=torch.float64)

    def score(i: int, j: int) -> Tensor:
        return (turned(q, i) * turned(k, j)).sum()

    assert_close(score(7, 3), score(104, 100), "parity")
    assert_close(turned(q, 0), q, "rounding")
    assert abs(float(score(7, 3) - score(7, 4))) > 1e-6
    by_hand = turned(torch.tensor([[[[1.0, 0, 0, 0]]]], dtype=torch.float64), 2)[0, 0, 0]
    assert_close(by_hand, torch.tensor([math.cos(2), 0, math.sin(2), 0], dtype=torch.float64), "rounding")


def test_the_result_names_the_kernels_that_ran(x: Tensor) -> None:
    layer = mf.attention("full:2 + band(window=3):2", cases.DIM, cases.HEADS, causal=True).double()
    assert layer.attend(x).kernels == ("sdpa", "native" if load().library else "torch")
    with torch_kernels():
        assert layer.attend(x).kernels == ("sdpa", "torch")


def test_rotary_at_far_positions_keeps_its_precision() -> None:
    q = torch.ones(1, 1, 1, 4)
    far = 3_000_001
    exact = turned(q.double(), far)
    assert_close(turned(q, far), exact.float(), "rounding")


def test_shifted_positions_change_nothing_in_a_rotary_layer(x: Tensor) -> None:
    layer = cases.layer("band(window=5)", torch.Generator().manual_seed(0), causal=True)
    shifted = torch.arange(N).expand(2, -1) + 1000
    assert_close(layer(x, positions=shifted), layer(x), "parity")


def test_routing_decides_before_the_rotation(x: Tensor) -> None:
    """Clusters are chosen by content alone: the plan sees q and k as they were projected."""
    text = "routing(clusters=4, window=6)"
    layer = mf.attention(text, cases.DIM, cases.HEADS, causal=True, rotary=True).double()
    mechanism, asked = layer.mechanisms[0], []
    plan = mechanism.plan
    mechanism.plan = lambda q, k, scope: asked.append((q, k)) or plan(q, k, scope)
    layer(x)
    layer.step(x[:, :3], layer.init_state(2))
    q, k, _ = layer.project(x, x)
    for count, seen in zip((N, 3), asked, strict=True):
        assert_close(seen[0], q[:, :, :count], "rounding")
        assert_close(seen[1], k[:, :, :count], "rounding")


def test_cross_attention_reads_the_context(x: Tensor, generator: torch.Generator) -> None:
    layer = mf.attention("full", cases.DIM, cases.HEADS).double()
    context = cases.draw((2, 7, cases.DIM), generator)
    real = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    y = layer(x, context=context, context_is_real=real)
    assert_close(y[1:], layer(x[1:], context=context[1:, :4]), "parity")
    assert_close(layer(x, context=x), layer(x), "parity")


def test_dropout_only_in_training(x: Tensor) -> None:
    layer = mf.attention("full", cases.DIM, cases.HEADS, dropout=0.5).double()
    with torch.random.fork_rng(devices=[]):
        assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mechanism": "bandd"}, r"mechanism: name is unknown, got 'bandd'; nearest: band"),
        ({"mechanism": "band(windw=3)"}, r"band: option 'windw' is unknown.*window"),
        ({"mechanism": "band(window=-1)"}, r"band: window must be 0 or more, got -1"),
        ({"mechanism": "band(window=2.5)"}, r"band: window must be int, got 2.5"),
        ({"mechanism": "band(window=true)"}, r"band: window must be int, got True"),
        ({"mechanism": "routing(clusters=0)"}, r"routing: clusters must be 1 or more, got 0"),
        ({"mechanism": "routing(window=0)"}, r"routing: window must be 1 or more, got 0"),
        ({"mechanism": "routing(clusters=2, query_clusters=3)"}, r"routing: query_clusters must be at most"),
        ({"mechanism": "routing(membership=topk)"}, r"routing: membership must be one of"),
        ({"mechanism": "routing(decay=1.0)"}, r"routing: decay must lie in"),
        ({"mechanism": "block_local(block=0)"}, r"block_local: block must be 1 or more"),
        ({"mechanism": "linformer(rank=0)"}, r"linformer: rank must be 1 or more"),
        ({"mechanism": "full:3 + band:2"}, r"spec: heads of all parts"),
        ({"mechanism": "full + band:2"}, r"spec: heads of all parts"),
        ({"mechanism": "band(window=3"}, r"spec: brackets must close"),
        ({"mechanism": "band(window='3)"}, r"spec: quotes must close"),
        ({"mechanism": ""}, r"spec: must be text"),
        ({"mechanism": "full", "heads": 3}, r"attention: heads must divide dim=32, got 3"),
        ({"mechanism": "full", "heads": 0}, r"attention: heads must be 1 or more, got 0"),
        ({"mechanism": "full", "dim": 0}, r"attention: dim must be 1 or more"),
        ({"mechanism": "full", "kv_heads": 3}, r"grouped_query: kv_heads must divide heads=4, got 3"),
        ({"mechanism": "full", "head_dim": 5, "rotary": True}, r"rotary: head_dim must be even, got 5"),
        ({"mechanism": "full:1 + band:3", "kv_heads": 2}, r"full: heads must be a multiple of"),
        ({"mechanism": "full", "dropout": 1.0}, r"attention: dropout must lie in \[0, 1\)"),
        ({"mechanism": "full", "score": "alibbi"}, r"score: name is unknown, got 'alibbi'; nearest: alibi"),
    ],
)
def test_bad_settings_are_refused_in_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(mf.MapformersError, match=message) as error:
        mf.attention(**{"dim": cases.DIM, "heads": cases.HEADS, **arguments})
    assert "\n" not in str(error.value)
    assert "; " in str(error.value), "no remedy"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"x": torch.zeros(2, N, 5)}, r"attention: x must have shape \[batch, tokens, 32\]"),
        ({"key_is_real": torch.ones(2, N)}, r"scope: key_is_real must be bool"),
        ({"key_is_real": torch.ones(2, N + 1).bool()}, r"scope: key_is_real must have shape \(2, 20\)"),
        ({"segments": torch.full((2, N), -1)}, r"scope: segments must be 0 or more"),
        ({"context_is_real": torch.ones(2, N).bool()}, r"attention: context_is_real goes with context"),
        ({"context": torch.zeros(2, 3, 32)}, r"attention: context needs causal=False"),
    ],
)
def test_bad_inputs_are_refused_in_one_line(call: dict, message: str) -> None:
    layer = mf.attention("full", cases.DIM, cases.HEADS, causal=True)
    with pytest.raises(mf.MapformersError, match=message):
        layer(**{"x": torch.zeros(2, N, cases.DIM), **call})


def test_mechanisms_stand_at_the_sizes_of_their_first_call() -> None:
    routing = mf.mechanism("routing", clusters=4)
    q = torch.zeros(1, 2, 3, 4)
    mf.attend(routing, q, q, q)
    with pytest.raises(mf.MapformersError, match="routing: sizes are fixed at"):
        mf.attend(routing, *(torch.zeros(1, 4, 3, 4),) * 3)


@pytest.mark.parametrize("text", [t for t in cases.ALL if cases.supports(t, "decode")])
def test_the_batch_of_a_state_is_fixed(text: str) -> None:
    layer = mf.attention(text, cases.DIM, cases.HEADS, causal=True)
    with pytest.raises(mf.MapformersError, match="attention: x must have the state's batch size 2, got 3"):
        layer.step(torch.zeros(3, 1, cases.DIM), layer.init_state(2))
