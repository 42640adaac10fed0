"""The reversible block and its stack: formula, inverse, gradients, memory, losses and statistics once."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import mapformers as mf
from mapformers.blocks.dropout import seeded_dropout
from mapformers.blocks.reversible import ReversibleBlock, Streams
from mapformers.blocks.reversible_stack import ReversibleStack, run_reversible
from mapformers.core.carry import Carry
from tests.contract import cases
from tests.models.tiny import model_of, tokens
from tests.tolerances import assert_close

N = 23
KINDS = {
    "band": "attention='band(window=5)'",
    "routing": "attention='routing(clusters=4, window=5)'",
    "reformer": "attention='reformer(buckets=4, window=5, rounds=2)', project=shared_qk",
    "moba": "attention='moba(block=3, top=2)'",
}


def blocks_of(kind: str, generator: torch.Generator, depth: int = 3, more: str = "") -> list[ReversibleBlock]:
    return [cases.block(f"reversible({KINDS[kind]}{more})", generator, causal=True) for _ in range(depth)]


def one_by_one(blocks: list[ReversibleBlock], x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
    for block in blocks:
        x, carry = block(x, carry)
    return x, carry


def total(x: Tensor, carry: Carry) -> Tensor:
    """A number that depends on both streams at real tokens and on the losses."""
    weights = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    if carry.key_is_real is not None:
        weights = weights * carry.key_is_real.unsqueeze(-1)
    assert carry.stream is not None
    return (weights * x).sum() + carry.stream.square().sum() + sum(carry.losses.values())


def gradients(
    run: Callable[..., tuple[Tensor, Carry]], blocks: list[ReversibleBlock], x: Tensor
) -> list[Tensor]:
    parameters = [p for block in blocks for p in block.parameters()]
    real = torch.arange(N).expand(2, -1) < torch.tensor([[N], [17]])
    return list(torch.autograd.grad(total(*run(blocks, x, Carry(key_is_real=real))), [x, *parameters]))


def test_formula(generator: torch.Generator) -> None:
    (block,) = blocks_of("band", generator, depth=1)
    first, second = (cases.draw((2, N, cases.DIM), generator) for _ in range(2))
    x, carry = Streams(first, second).into(Carry())
    y, after = block(x, carry)
    expected_first = first + block.attention(block.attention_norm(second))
    expected_second = second + block.feed_forward(block.feed_forward_norm(expected_first))
    actual = Streams.of(y, after)
    assert_close(actual.first, expected_first, "parity")
    assert_close(actual.second, expected_second, "parity")


def test_the_streams_begin_as_two_copies(generator: torch.Generator) -> None:
    x = cases.draw((1, 4, cases.DIM), generator)
    streams = Streams.of(x, Carry())
    assert torch.equal(streams.first, x)
    assert torch.equal(streams.second, x)


@pytest.mark.parametrize("kind", KINDS)
def test_the_inverse_restores_the_streams(kind: str, generator: torch.Generator) -> None:
    blocks = blocks_of(kind, generator)
    x, stream = (cases.draw((2, N, cases.DIM), generator) for _ in range(2))
    with torch.no_grad():
        y, carry = one_by_one(blocks, x, Carry(stream=stream))
        for block in reversed(blocks):
            y, carry = block.inverse(y, carry)
    assert carry.stream is not None
    assert_close(y, x, "parity", kind)
    assert_close(carry.stream, stream, "parity", kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_gradients_are_those_of_the_plain_composition(
    kind: str, training: bool, generator: torch.Generator
) -> None:
    """In training with dropout: the same places fall out in the second pass, and in the plain form."""
    blocks = [block.train(training) for block in blocks_of(kind, generator, more=", dropout=0.3")]
    x = cases.draw((2, N, cases.DIM), generator).requires_grad_()
    found = []
    for run in (one_by_one, run_reversible):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            found.append(gradients(run, blocks, x))
    for plain, restored in zip(*found, strict=True):
        assert_close(restored, plain, "parity", kind)


def test_training_drops_and_evaluation_does_not(generator: torch.Generator) -> None:
    blocks = blocks_of("band", generator, depth=1, more=", dropout=0.5")
    x = cases.draw((2, N, cases.DIM), generator)
    stack = ReversibleStack(blocks)
    calm = stack.eval()(x, Carry())[0]
    assert torch.equal(calm, stack(x, Carry())[0])
    stack.train()
    assert not torch.equal(stack(x, Carry())[0], stack(x, Carry())[0])


def test_seeded_dropout_drops_its_share_and_repeats() -> None:
    x = torch.ones(100, 1000)
    dropped = seeded_dropout(x, 0.3, seed=4)
    assert torch.equal(dropped, seeded_dropout(x, 0.3, seed=4))
    assert not torch.equal(dropped, seeded_dropout(x, 0.3, seed=5))
    kept = dropped[dropped != 0]
    assert_close(kept, torch.full_like(kept, 1 / 0.7), "rounding")
    deviation = (0.3 * 0.7 / x.numel()) ** 0.5
    assert abs(1 - kept.numel() / x.numel() - 0.3) < 5 * deviation
    assert seeded_dropout(x, 0.3, seed=None) is x


def kept_for_the_backward(run: Callable[..., tuple[Tensor, Carry]], blocks: list[ReversibleBlock]) -> int:
    """Bytes of what autograd holds between forward and backward, parameters not counted."""
    own = {p.data_ptr() for block in blocks for p in block.parameters()}
    held: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if x.data_ptr() not in own:
            held[x.data_ptr()] = x.numel() * x.element_size()
        return x

    x = torch.randn(2, 64, cases.DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        alive = run(blocks, x.requires_grad_(), Carry())
    assert alive[0].requires_grad
    return sum(held.values())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_does_not_grow_with_depth(kind: str, generator: torch.Generator) -> None:
    two, eight = (blocks_of(kind, generator, depth) for depth in (2, 8))
    assert kept_for_the_backward(run_reversible, eight) == kept_for_the_backward(run_reversible, two)
    assert kept_for_the_backward(one_by_one, eight) > 3 * kept_for_the_backward(one_by_one, two)


def test_losses_and_statistics_count_once(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second pass through a routing block shows its centroids nothing and adds no loss."""
    plain = [block.train() for block in blocks_of("routing", generator)]
    restored = [block.train() for block in blocks_of("routing", generator)]
    for a, b in zip(plain, restored, strict=True):
        b.load_state_dict(a.state_dict())
    x = cases.draw((2, N, cases.DIM), generator).requires_grad_()
    mechanism, calls, losses = type(plain[0].attention.mechanisms[0]), [], []
    observe = mechanism.observe

    def counted(self: nn.Module, *arguments: object) -> None:
        calls.append(self)
        observe(self, *arguments)

    monkeypatch.setattr(mechanism, "observe", counted)
    for run, blocks in ((one_by_one, plain), (run_reversible, restored)):
        y, carry = run(blocks, x, Carry())
        total(y, carry).backward()
        losses.append(carry.losses)
        for block in blocks:
            block.update_centroids()
    assert len(calls) == 2 * len(plain)
    assert losses[0].keys() == losses[1].keys() == {"commitment"}
    assert_close(losses[1]["commitment"], losses[0]["commitment"], "rounding")
    for a, b in zip(plain, restored, strict=True):
        floating = [name for name, buffer in a.named_buffers() if buffer.is_floating_point()]
        for name in floating:
            assert_close(b.get_buffer(name), a.get_buffer(name), "rounding", name)


def test_a_loss_alone_has_gradients(generator: torch.Generator) -> None:
    blocks = [block.train() for block in blocks_of("routing", generator)]
    x = cases.draw((2, N, cases.DIM), generator).requires_grad_()
    found = [
        torch.autograd.grad(run(blocks, x, Carry())[1].losses["commitment"], x)[0]
        for run in (one_by_one, run_reversible)
    ]
    assert found[0].any()
    assert_close(found[1], found[0], "parity")


def test_choices_are_kept_and_not_made_again(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Restored inputs differ by rounding: were all choices turned over, gradients would be the same."""
    blocks = blocks_of("moba", generator)
    x = cases.draw((2, N, cases.DIM), generator).requires_grad_()
    expected = gradients(one_by_one, blocks, x)
    mechanism = type(blocks[0].attention.mechanisms[0])
    plan, calls = mechanism.plan, []

    def other_in_the_second_pass(self: nn.Module, q: Tensor, k: Tensor, scope: object) -> object:
        calls.append(0)
        return plan(self, -q if len(calls) > len(blocks) else q, k, scope)

    monkeypatch.setattr(mechanism, "plan", other_in_the_second_pass)
    actual = gradients(run_reversible, blocks, x)
    assert len(calls) == 2 * len(blocks)
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b, "parity")


def test_a_model_runs_neighbours_as_one_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two reversible layers in a row, then one between others; hidden states are all there when asked for."""
    reversible = {"block": "reversible(attention='band(window=5)')"}
    model = model_of([reversible, reversible, {"attention": "band(window=3)"}, reversible])
    depths = []

    def watched(blocks: list[ReversibleBlock], x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        depths.append(len(blocks))
        return run_reversible(blocks, x, carry)

    monkeypatch.setattr("mapformers.models.stack.run_reversible", watched)
    ids = tokens(2, 19)
    logits = model(ids).logits
    assert depths == [2, 1]
    watched_states = model(ids, output_hidden_states=True)
    assert len(watched_states.hidden_states) == 5
    assert_close(watched_states.logits, logits, "rounding")


def test_a_model_decodes_like_its_forward() -> None:
    layer = {"block": "reversible(attention='reformer(buckets=4, window=5)', project=shared_qk)"}
    model = model_of([layer, layer]).double()
    ids = tokens(2, 19)
    with torch.no_grad():
        expected, cache, found = model(ids).logits, None, []
        for i in range(19):
            out = model(ids[:, i : i + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            found.append(out.logits)
    assert_close(torch.cat(found, 1), expected, "decode")


def test_bad_input(generator: torch.Generator) -> None:
    with pytest.raises(mf.MapformersError, match=r"reversible: dropout must lie in \[0, 1\), got 1"):
        mf.block("reversible(dropout=1.0)", 32, 4)
    with pytest.raises(mf.MapformersError, match="reversible: hidden must be 0 or more, got -1"):
        mf.block("reversible(hidden=-1)", 32, 4)
    with pytest.raises(mf.MapformersError, match="reversible: a stack must have 1 block or more"):
        ReversibleStack([])
    x = torch.zeros(1, 4, 32, dtype=torch.float64)
    (block,) = blocks_of("band", generator, depth=1)
    with pytest.raises(mf.MapformersError, match=r"carry\.stream must have the shape of x"):
        block(x, Carry(stream=x[:, :2]))
