"""The star: two dense attentions say the same, and four tokens worked out by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mapformers as mf
from mapformers.blocks.star import StarBlock, neighbours
from mapformers.core.carry import Carry
from mapformers.kernels.softmax import masked_softmax, scaled_scores
from mapformers.models.stack import MapformerModel
from tests.contract import cases
from tests.contract.measure import exponent, peak_bytes
from tests.models.tiny import config_of, tokens
from tests.tolerances import assert_close

LENGTHS = (1, 2, 3, 4, 17, 40)


def dense(
    block: StarBlock, x: Tensor, embedding: Tensor, relay: Tensor, real: Tensor
) -> tuple[Tensor, Tensor]:
    """Satellites over the 2 N + 1 keys [H; E; s] under a mask, then the relay over [s; H']."""
    batch, n, _ = x.shape
    mask = torch.zeros(batch, n, 2 * n + 1, dtype=torch.bool)
    for b in range(batch):
        order = real[b].nonzero().flatten().tolist()
        for rank, i in enumerate(order):
            for step in (-1, 0, 1):
                if block.config.ring:
                    mask[b, i, order[(rank + step) % len(order)]] = True
                elif 0 <= rank + step < len(order):
                    mask[b, i, order[rank + step]] = True
    for i in range(n):
        mask[:, i, [n + i, 2 * n]] = True
    act = F.relu if block.config.activation == "relu" else F.leaky_relu
    q, k, v = block.satellites(x, torch.cat([x, embedding, relay], 1))
    heads = masked_softmax(scaled_scores(q, k), mask[:, None]) @ v
    x = block.satellites_norm(act(block.satellites_merge(heads)))
    q, k, v = block.relay(relay, torch.cat([relay, x], 1))
    seen = torch.cat([torch.ones(batch, 1, dtype=torch.bool), real], 1)[:, None, None]
    heads = masked_softmax(scaled_scores(q, k), seen) @ v
    return x, block.relay_norm(act(block.relay_merge(heads)))


def stacked(blocks: list[nn.Module], x: Tensor, real: Tensor | None = None) -> tuple[Tensor, Carry]:
    carry = Carry(key_is_real=real)
    for block in blocks:
        x, carry = block(x, carry)
    return x, carry


@pytest.mark.parametrize("padding", ["none", "left", "right", "holes"])
@pytest.mark.parametrize("text", cases.BLOCKS["star"])
def test_three_cycles_equal_two_dense_attentions_each(
    text: str, padding: str, generator: torch.Generator
) -> None:
    """Satellites, relay, and the gradients of the input and of every parameter."""
    blocks = [cases.block(text, generator, False) for _ in range(3)]
    for n in LENGTHS:
        x = cases.draw((2, n, cases.DIM), generator).requires_grad_()
        real = torch.ones(2, n, dtype=torch.bool) if padding == "none" else cases.mask(padding, n, generator)
        found, carry = stacked(blocks, x, None if padding == "none" else real)
        mean = torch.stack([x[b, real[b]].sum(0) / max(1, int(real[b].sum())) for b in range(2)])
        satellites, relay = x, mean[:, None]
        for block in blocks:
            satellites, relay = dense(block, satellites, x, relay, real)
        assert carry.stream is not None
        pairs = ((found[real], satellites[real]), (carry.stream, relay))
        leaves = [x, *(p for block in blocks for p in block.parameters())]
        totals = []
        for a, b in pairs:
            assert_close(a, b, "parity", f"{text}, {n} tokens")
        direction = [cases.draw(tuple(a.shape), generator) for a, _ in pairs]
        for side in (0, 1):
            total = sum((pair[side] * d).sum() for pair, d in zip(pairs, direction, strict=True))
            totals.append(torch.autograd.grad(total, leaves))
        for a, b in zip(*totals, strict=True):
            assert_close(a, b, "gradient", f"{text}, {n} tokens")


def uniform(text: str) -> StarBlock:
    """A block of width 2 without norms in which every context row weighs the same; satellites doubled."""
    block = mf.block(text, 2, 1).double()
    assert isinstance(block, StarBlock)
    with torch.no_grad():
        for layer in (block.satellites, block.relay):
            layer.query.weight.zero_()
            layer.value.weight.copy_(torch.eye(2))
        block.satellites_merge.output.weight.copy_(2 * torch.eye(2))
        block.relay_merge.output.weight.copy_(torch.eye(2))
    block.satellites_norm = block.relay_norm = nn.Identity()  # type: ignore[assignment]
    return block


def test_four_tokens_by_hand() -> None:
    """Tokens 1 2 3 4, relay 2.5. On the ring token 1 reads 4 1 2, itself once more as e, and the relay."""
    x = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64)[None, :, None] * torch.tensor([1.0, -1])
    for text, first, last in (
        ("star", (4 + 1 + 2 + 1 + 2.5) / 5, (3 + 4 + 1 + 4 + 2.5) / 5),
        ("star(ring=false)", (1 + 2 + 1 + 2.5) / 4, (3 + 4 + 4 + 2.5) / 4),
    ):
        y, carry = uniform(text)(x, Carry())
        middle = [(1 + 2 + 3 + 2 + 2.5) / 5, (2 + 3 + 4 + 3 + 2.5) / 5]
        expected = [2 * row for row in (first, *middle, last)]
        assert_close(y[0, :, 0], torch.tensor(expected, dtype=torch.float64), "rounding", text)
        assert not y[0, :, 1].any()  # negative, so relu makes it zero
        assert carry.stream is not None
        relay = torch.tensor([(2.5 + sum(expected)) / 5, 0], dtype=torch.float64)  # reads the new satellites
        assert_close(carry.stream[0, 0], relay, "rounding", text)
        again, _ = uniform(text)(y, carry)  # in the next cycle e is still x
        second = 2 * (expected[0] + expected[1] + expected[2] + 2 + float(relay[0])) / 5
        assert_close(again[0, 1, 0], torch.tensor(second, dtype=torch.float64), "rounding", text)


def test_neighbours_are_the_nearest_real_tokens() -> None:
    real = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 0, 1], [0, 0, 1, 0, 0]]).bool()
    expected: dict[bool, list[dict[int, set[int]]]] = {
        True: [{0: {2, 3}, 2: {0, 3}, 3: {0, 2}}, {1: {4}, 4: {1}}, {2: set()}],
        False: [{0: {2}, 2: {0, 3}, 3: {2}}, {1: {4}, 4: {1}}, {2: set()}],
    }
    for ring, rows in expected.items():
        sides = neighbours(real, ring)
        for row, seen in enumerate(rows):
            for i, wanted in seen.items():
                found = [int(side.place[row, i]) for side in sides if side.there[row, i]]
                assert len(found) == len(set(found))
                assert set(found) == wanted, (ring, row, i)


def test_two_cycles_reach_every_token(generator: torch.Generator) -> None:
    """The relay of the first cycle has read them all."""
    blocks = [cases.block("star(activation=leaky_relu)", generator, False) for _ in range(2)]
    x = cases.draw((1, 20, cases.DIM), generator).requires_grad_()
    y, _ = stacked(blocks, x)
    (gradient,) = torch.autograd.grad((y[0, 3] * cases.draw((cases.DIM,), generator)).sum(), x)
    assert gradient[0].ne(0).any(-1).all()


def test_a_row_of_padding_alone_is_finite() -> None:
    real = torch.zeros(2, 5, dtype=torch.bool)
    y, carry = mf.block("star", 32, 4)(torch.ones(2, 5, 32), Carry(key_is_real=real))
    assert y.isfinite().all()
    assert carry.stream is not None
    assert carry.stream.isfinite().all()


def test_memory_is_linear() -> None:
    block = mf.block("star", 16, 2)
    small, large = (peak_bytes(lambda n=n: block(torch.zeros(1, n, 16), Carry())[0]) for n in (1024, 4096))
    assert exponent(small, large, 4) < 1.1, (small, large)


def test_a_model_of_stars() -> None:
    layers = [{"block": "star", "rotary": False}] * 2
    model = MapformerModel(config_of(layers, causal=False)).eval()
    ids, mask = tokens(2, 9), torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    hidden = model(ids, attention_mask=mask).last_hidden_state
    assert hidden.shape == (2, 9, 32)
    assert_close(hidden[1:, :6], model(ids[1:, :6]).last_hidden_state, "rounding")


def test_refusals_name_the_block() -> None:
    block, x = mf.block("star", 32, 4), torch.zeros(2, 9, 32)
    for carry, message in (
        (Carry(segments=torch.zeros(2, 9, dtype=torch.long)), "star: segments"),
        (Carry(stream=torch.zeros(2, 4, 32)), r"star: stream must have shape \(2, 1, 32\)"),
        (Carry(embedding=torch.zeros(2, 4, 32)), r"star: embedding must have shape \(2, 9, 32\)"),
        (Carry(key_is_real=torch.ones(2, 8, dtype=torch.bool)), "key_is_real must have shape"),
    ):
        with pytest.raises(mf.MapformersError, match=message):
            block(x, carry)
    for options, message in (
        ({"causal": True}, "star: causal"),
        ({"rotary": True}, "star: rotary"),
    ):
        with pytest.raises(mf.MapformersError, match=message):
            mf.block("star", 32, 4, **options)
    with pytest.raises(mf.MapformersError, match="star: heads must divide dim=32"):
        mf.block("star", 32, 5)
    with pytest.raises(mf.MapformersError, match="star: activation"):
        mf.block("star(activation=gelu)", 32, 4)
