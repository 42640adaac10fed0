"""ETC: one dense attention over [g; l] says the same, whatever the labels; four tokens by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

import mapformers as mf
from mapformers.blocks.etc import EtcBlock
from mapformers.core.carry import Carry
from mapformers.kernels import dense as dense_kernel
from mapformers.kernels.softmax import masked_softmax, scaled_scores
from mapformers.models.stack import MapformerModel
from tests.contract import cases
from tests.contract.measure import exponent, peak_bytes
from tests.models.tiny import config_of, tokens
from tests.tolerances import assert_close

BASE = "etc(radius=2, global_tokens=3, max_distance=2, labels=3)"


def labels_and_mask(block: EtcBlock, carry: Carry, sizes: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Labels and mask [B, L + N, L + N] over the concatenation [g; l], pair by pair; sizes: B, L, N."""
    batch, rows, n = sizes
    config, k = block.config, block.config.max_distance
    real = torch.ones(batch, n, dtype=torch.bool) if carry.key_is_real is None else carry.key_is_real
    label = torch.full((batch, rows + n, rows + n), 2 * k + 1)
    mask = torch.ones(batch, rows + n, rows + n, dtype=torch.bool)
    for b in range(batch):
        rank = real[b].long().cumsum(0) - 1
        place = rank if carry.positions is None else carry.positions[b]
        label[b, :rows, :rows] = steps(torch.arange(rows)).clip(-k, k) + k
        label[b, rows:, rows:] = steps(place).clip(-k, k) + k
        mask[b, rows:, rows:] = steps(rank).abs() <= config.radius
    mask[:, :, rows:] &= real[:, None]
    parts = {"g": slice(0, rows), "l": slice(rows, None)}
    for name, given in carry.labels.items():
        query, key = parts[name[0]], parts[name[2]]
        label[:, query, key] = given
        mask[:, query, key] &= given >= 0
    return label.clamp(min=0), mask


def steps(place: Tensor) -> Tensor:
    """[N, N] from every key to every query."""
    return place[:, None] - place[None, :]


def dense(block: EtcBlock, x: Tensor, stream: Tensor, carry: Carry) -> tuple[Tensor, Tensor]:
    """Both sides over the concatenation; with shared projections they differ in their labels' terms only."""
    rows, attention = stream.shape[1], block.attention
    label, mask = labels_and_mask(block, carry, (x.shape[0], rows, x.shape[1]))
    both = torch.cat([stream, x], 1)
    sides = {}
    for side, part in (("g", slice(0, rows)), ("l", slice(rows, None))):
        names = [attention._key_name(side + "2" + of) for of in "gl"]
        split = attention._split
        k, v = (
            split(torch.cat([maps[names[0]](stream), maps[names[1]](x)], 1))
            for maps in (attention.key, attention.value)
        )
        q = split(attention.query[attention._query_name(side)](both))
        a = attention.relative[side].keys[:, label].transpose(0, 1)  # [B, H, L + N, L + N, D]
        b = attention.relative[side].bias[:, label].transpose(0, 1)
        bias = (torch.einsum("bhid,bhijd->bhij", q, a) + b) / math.sqrt(q.shape[-1])
        heads = masked_softmax(scaled_scores(q, k) + bias, mask[:, None]) @ v
        sides[side] = attention.merge[side](heads[:, :, part])
    x, stream = block.long_norm(x + sides["l"]), block.global_norm(stream + sides["g"])
    x, stream = (block.feed_forward_norm(y + block.feed_forward(y)) for y in (x, stream))
    return x, stream


def blocks_of(text: str, generator: torch.Generator, count: int = 2) -> list[EtcBlock]:
    made = [cases.block(text, generator, False) for _ in range(count)]
    return [block for block in made if isinstance(block, EtcBlock)]


def stacked(blocks: list[EtcBlock], x: Tensor, carry: Carry) -> tuple[Tensor, Tensor]:
    for block in blocks:
        x, carry = block(x, carry)
    assert carry.stream is not None
    return x, carry.stream


def stacked_dense(blocks: list[EtcBlock], x: Tensor, carry: Carry) -> tuple[Tensor, Tensor]:
    stream = carry.stream
    if stream is None:
        assert blocks[0].start is not None
        stream = blocks[0].start.expand(x.shape[0], -1, -1)
    for block in blocks:
        x, stream = dense(block, x, stream, carry)
    return x, stream


def assert_equal_to_dense(blocks: list[EtcBlock], x: Tensor, carry: Carry, what: str) -> None:
    """Real rows and global rows, and the gradients of the input and of every parameter."""
    x = x.clone().requires_grad_()
    real = torch.ones(x.shape[:2], dtype=torch.bool) if carry.key_is_real is None else carry.key_is_real
    leaves = [x, *(p for block in blocks for p in block.parameters())]
    gradients, outputs = [], []
    for run in (stacked, stacked_dense):
        y, stream = run(blocks, x, carry)
        outputs.append((y[real], stream))
        total = (y[real] * y[real].detach().roll(1)).sum() + (stream * stream.detach().roll(1)).sum()
        gradients.append(torch.autograd.grad(total, leaves, allow_unused=True))
    for a, b in zip(*outputs, strict=True):
        assert_close(a, b, "parity", what)
    for a, b in zip(*gradients, strict=True):
        zero = torch.zeros(1, dtype=x.dtype)
        assert_close(zero if a is None else a, zero if b is None else b, "gradient", what)


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["none", "left", "right", "holes"])
@pytest.mark.parametrize("text", cases.BLOCKS["etc"])
def test_two_layers_equal_one_dense_attention_each(
    text: str, padding: str, generator: torch.Generator
) -> None:
    blocks = blocks_of(text, generator)
    for n in (1, 2, 7, 40):
        real = None if padding == "none" else cases.mask(padding, n, generator)
        x = cases.draw((2, n, cases.DIM), generator)
        assert_equal_to_dense(blocks, x, Carry(key_is_real=real), f"{text}, {n} tokens, {padding}")


@pytest.mark.parametrize("projections", ["shared", "by_side", "separate"])
def test_any_labels_equal_the_dense_form(projections: str, generator: torch.Generator) -> None:
    """Every integer for the three pieces, a third of the pairs hidden, one row hidden wholly, padding."""
    blocks = blocks_of(BASE.replace("labels=3", f"labels=3, projections={projections}"), generator)
    n, rows = 23, 3
    labels = {
        name: torch.randint(-4, 8, shape, generator=generator)
        for name, shape in (("l2g", (2, n, rows)), ("g2l", (2, rows, n)), ("g2g", (1, rows, rows)))
    }
    labels["g2l"][0, 1] = labels["g2g"][0, 1] = -1
    for real in (None, cases.mask("holes", n, generator)):
        carry = Carry(labels=labels, key_is_real=real)
        x = cases.draw((2, n, cases.DIM), generator)
        assert_equal_to_dense(blocks, x, carry, projections)


def test_distances_are_those_of_the_true_positions(generator: torch.Generator) -> None:
    """The window counts tokens, the labels read positions."""
    blocks = blocks_of(BASE, generator)
    positions = torch.randint(0, 4, (2, 11), generator=generator).cumsum(1)
    x = cases.draw((2, 11, cases.DIM), generator)
    assert_equal_to_dense(blocks, x, Carry(positions=positions), "positions")
    assert not torch.equal(blocks[0](x, Carry(positions=positions))[0], blocks[0](x, Carry())[0])


def test_a_given_stream_of_any_length(generator: torch.Generator) -> None:
    blocks = blocks_of(BASE.replace("global_tokens=3", "global_tokens=0"), generator)
    for rows in (1, 7):
        stream = cases.draw((2, rows, cases.DIM), generator)
        x = cases.draw((2, 9, cases.DIM), generator)
        assert_equal_to_dense(blocks, x, Carry(stream=stream), f"{rows} rows")


def test_with_everything_in_reach_it_is_plain_attention(generator: torch.Generator) -> None:
    """A window over all, shared projections, no labels: full attention over the concatenation [g; l]."""
    (block,) = blocks_of("etc(radius=30, global_tokens=4)", generator, 1)
    with torch.no_grad():
        for side in "lg":
            block.attention.relative[side].keys.zero_()
            block.attention.relative[side].bias.fill_(0.3)  # for all alike: nothing
        block.attention.merge["g"].load_state_dict(block.attention.merge["l"].state_dict())
    full = mf.attention("full", cases.DIM, cases.HEADS).double()
    with torch.no_grad():
        for name in ("query", "key", "value"):
            getattr(full.project, name).weight.copy_(getattr(block.attention, name)["all"].weight)
        full.merge.output.weight.copy_(block.attention.merge["l"].output.weight)
    x, stream = (cases.draw((2, count, cases.DIM), generator) for count in (25, 4))
    long, short = block.attention(x, stream, Carry())
    assert_close(torch.cat([short, long], 1), full(torch.cat([stream, x], 1)), "parity")


def plain(text: str) -> EtcBlock:
    """A block of width 2 in which all keys weigh the same but for their labels: out = x + mean of keys."""
    block = mf.block(text, 2, 1).double()
    assert isinstance(block, EtcBlock)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        block.attention.value["all"].weight.copy_(torch.eye(2))
        for side in "lg":
            block.attention.merge[side].output.weight.copy_(torch.eye(2))
        block.start.fill_(10)  # type: ignore[union-attr]
    block.long_norm = block.global_norm = block.feed_forward_norm = nn.Identity()  # type: ignore[assignment]
    return block


def test_four_tokens_by_hand() -> None:
    """Tokens 1 2 3 4, one global row 10, radius 1. Then 10 counts twice, one step back thrice."""
    block = plain("etc(radius=1, global_tokens=1, max_distance=1)")
    x = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64)[None, :, None].expand(1, 4, 2)
    y, carry = block(x, Carry())
    means = [(1 + 2 + 10) / 3, (1 + 2 + 3 + 10) / 4, (2 + 3 + 4 + 10) / 4, (3 + 4 + 10) / 3]
    assert_close(y[..., 0], x[..., 0] + torch.tensor(means, dtype=torch.float64), "rounding")
    assert carry.stream is not None
    assert_close(carry.stream[..., 0], torch.tensor([[10 + 20 / 5]], dtype=torch.float64), "rounding")
    with torch.no_grad():
        block.attention.relative["l"].bias[0, 3] = math.log(2) * math.sqrt(2)  # inside the scaling
        block.attention.relative["l"].bias[0, 2] = math.log(3) * math.sqrt(2)
    y, _ = block(x, Carry())
    means = [(1 + 2 + 20) / 4, (3 + 2 + 3 + 20) / 7, (6 + 3 + 4 + 20) / 7, (9 + 4 + 20) / 6]
    assert_close(y[..., 0], x[..., 0] + torch.tensor(means, dtype=torch.float64), "rounding")


def test_sentences_by_hand() -> None:
    """Two global rows, two sentences of two tokens: a row sees its own tokens only."""
    block = plain("etc(radius=1, global_tokens=2, max_distance=1, labels=2)")
    x = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64)[None, :, None].expand(1, 4, 2)
    own = torch.tensor([[0, 0, 1, 1]]).unsqueeze(1) == torch.arange(2)[None, :, None]  # [1, 2, 4]
    _, carry = block(x, Carry(labels={"g2l": torch.where(own, 4, -1)}))
    assert carry.stream is not None
    expected = [10 + (10 + 10 + 1 + 2) / 4, 10 + (10 + 10 + 3 + 4) / 4]
    assert_close(carry.stream[0, :, 0], torch.tensor(expected, dtype=torch.float64), "rounding")


def test_scores_in_portions_change_nothing(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where scores are computed again in the backward, the table of the labels is read again too."""
    (block,) = blocks_of(BASE, generator, 1)
    x = cases.draw((2, 150, cases.DIM), generator).requires_grad_()
    results = []
    for limit in (dense_kernel.SCORES_ALIVE, 2**12):
        monkeypatch.setattr(dense_kernel, "SCORES_ALIVE", limit)
        y, carry = block(x, Carry())
        assert carry.stream is not None
        total = y.square().sum() * 0.5 + (y * y.detach().roll(1)).sum() + carry.stream[..., 0].sum()
        results.append([y, carry.stream, *torch.autograd.grad(total, [x, *block.parameters()])])
    for a, b in zip(*results, strict=True):
        assert_close(a, b, "gradient")


def test_memory_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_kernel, "SCORES_ALIVE", 2**18)
    block = mf.block("etc(radius=20, global_tokens=8)", 16, 2)
    small, large = (peak_bytes(lambda n=n: block(torch.zeros(1, n, 16), Carry())[0]) for n in (1024, 4096))
    assert exponent(small, large, 4) < 1.1, (small, large)


def test_a_model_of_etc_layers() -> None:
    """The global rows begin below and travel up."""
    options = "radius=2, max_distance=2"
    layers = [{"block": f"etc({options}, global_tokens={count})", "rotary": False} for count in (3, 0, 0)]
    model = MapformerModel(config_of(layers, causal=False)).double().eval()
    ids, mask = tokens(2, 9), torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    hidden = model(ids, attention_mask=mask).last_hidden_state
    assert hidden.shape == (2, 9, 32)
    assert_close(hidden[1:, :6], model(ids[1:, :6]).last_hidden_state, "parity")
    hidden.square().sum().backward()
    first = model.layers[0].block
    assert isinstance(first, EtcBlock)
    assert first.start is not None
    assert first.start.grad is not None


def test_refusals_name_the_block() -> None:
    block, x = mf.block(BASE, 32, 4), torch.zeros(2, 9, 32)
    wide = torch.zeros(2, 9, 3, dtype=torch.long)
    for carry, message in (
        (Carry(segments=torch.zeros(2, 9, dtype=torch.long)), "etc: segments"),
        (Carry(stream=torch.zeros(2, 4, 16)), r"etc: stream must have shape \(2, rows, 32\)"),
        (Carry(labels={"l2g": wide[:, :8]}), r"etc: labels 'l2g' must be int of shape \(2, 9, 3\)"),
        (Carry(labels={"l2g": wide.double()}), "etc: labels 'l2g' must be int"),
        (Carry(labels={"l2g": wide + 8}), "etc: labels 'l2g' must be below 8, got 8"),
        (Carry(labels={"l2l": wide}), "etc: labels is unknown, got 'l2l'"),
        (Carry(key_is_real=torch.ones(2, 8, dtype=torch.bool)), "key_is_real must have shape"),
    ):
        with pytest.raises(mf.MapformersError, match=message):
            block(x, carry)
    with pytest.raises(mf.MapformersError, match="etc: stream must come from the layer below"):
        mf.block("etc(global_tokens=0)", 32, 4)(x, Carry())
    for options, message in (({"causal": True}, "etc: causal"), ({"rotary": True}, "etc: rotary")):
        with pytest.raises(mf.MapformersError, match=message):
            mf.block("etc", 32, 4, **options)
    with pytest.raises(mf.MapformersError, match="etc: heads must divide dim=32"):
        mf.block("etc", 32, 5)
    for option in ("radius=-1", "global_tokens=-1", "max_distance=-1", "labels=0", "hidden=-1"):
        with pytest.raises(mf.MapformersError, match=f"etc: {option.split('=')[0]} must be"):
            mf.block(f"etc({option})", 32, 4)
