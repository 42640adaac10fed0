"""LazyFormer: weights of the first layer for all, what decoding keeps, and gradients through every layer."""

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.attention.ring import RingState
from mapformers.attention.state import DenseState, UnionState
from mapformers.blocks.lazyformer import LazyformerBlock
from mapformers.core.carry import Carry
from tests.tolerances import assert_close

DIM, HEADS, N = 16, 2, 13


def made(options: str, causal: bool = True) -> LazyformerBlock:
    block = mf.block(f"lazyformer({options})", DIM, HEADS, causal=causal).double()
    assert isinstance(block, LazyformerBlock)
    return block


def drawn(n: int = N) -> Tensor:
    return torch.randn(2, n, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_one_layer_is_a_transformer_block() -> None:
    lazy = made("attention='band(window=3)', depth=1")
    block = mf.block("transformer(attention='band(window=3)')", DIM, HEADS, causal=True).double()
    for name in ("attention_norm", "feed_forward_norm", "feed_forward"):
        getattr(block, name).load_state_dict(getattr(lazy, name)[0].state_dict())
    block.attention.load_state_dict(lazy.attention.state_dict())
    assert_close(lazy(drawn(), Carry())[0], block(drawn(), Carry())[0], "rounding")


@pytest.mark.parametrize("attention", ["full", "band(window=3)", "routing(clusters=3, window=5)"])
def test_higher_layers_use_the_weights_of_the_first(attention: str) -> None:
    """Outputs and gradients equal those of dense weights of the first layer times values of each."""
    block, x = made(f"attention='{attention}', depth=3"), drawn()
    q, k, v = block.attention.project(block.attention_norm[0](x), block.attention_norm[0](x))
    (mechanism,) = block.attention.parts()
    weights = mf.dense_weights(mechanism, q, k, causal=True)
    read, y = block.attention.merge(weights @ v), x
    for index in range(3):
        y = y + read
        y = y + block.feed_forward[index](block.feed_forward_norm[index](y))
        if index < 2:
            layer = block.reused[index]
            values = layer.value(block.attention_norm[index + 1](y)).view(2, N, HEADS, -1).transpose(1, 2)
            read = layer.merge(weights @ values)
    actual = block(x, Carry())[0]
    assert_close(actual, y, "parity", attention)
    wanted = [block.attention.project.query.weight, block.reused[1].value.weight]
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    for a, b in zip(
        torch.autograd.grad((actual * direction).sum(), wanted),
        torch.autograd.grad((y * direction).sum(), wanted),
        strict=True,
    ):
        assert_close(a, b, "gradient", attention)


def memory_of(state: object) -> dict[int, int]:
    """Bytes by the place where they lie."""
    if isinstance(state, UnionState):
        return {place: size for part in state.parts for place, size in memory_of(part).items()}
    assert isinstance(state, DenseState | RingState)
    held = (
        [state.keys, state.values] if isinstance(state, RingState) else [state.keys.room, state.values.room]
    )
    return {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in held}


@pytest.mark.parametrize("attention", ["full", "band(window=5)"])
def test_decoding_keeps_one_set_of_keys(attention: str) -> None:
    """depth values and one set of keys, whether tokens come alone or together."""
    block, x = made(f"attention='{attention}', depth=4"), drawn(40)
    expected = block(x, Carry())[0]
    state = block.init_state(2)
    start = 0
    for size in (7, 1, 1, 12, 1, 18):
        y, _, state = block.step(x[:, start : start + size], Carry(), state)
        assert_close(y, expected[:, start : start + size], "decode", f"{attention}, {start}")
        start += size
    places: dict[int, int] = {}
    for layer in state.layers:
        places.update(memory_of(layer[0]))
    single = memory_of(state.layers[0][0])
    assert len(places) == 1 + 4
    assert sum(places.values()) == pytest.approx(sum(single.values()) / 2 * 5, rel=0.01)


def test_beams_keep_sharing_keys() -> None:
    block, x = made("attention='full', depth=3"), drawn()
    state = block.init_state(2)
    _, _, state = block.step(x[:, :6], Carry(), state)
    state = state.reorder(torch.tensor([1, 1]))
    y, _, state = block.step(x[:, 6:7], Carry(), state)
    swapped = torch.cat([x[[1, 1], :6], x[:, 6:7]], 1)
    assert_close(y, block(swapped, Carry())[0][:, 6:], "decode")
    assert len({state.layers[i][0].keys.room.data_ptr() for i in range(3)}) == 1
