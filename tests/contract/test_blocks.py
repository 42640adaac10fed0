"""Blocks keep the same promises as mechanisms, as far as their cards claim them."""

import pytest
import torch
from torch import Tensor

from mapformers.core.carry import Carry
from tests.contract import cases
from tests.contract.test_causality import CHANGES, with_future
from tests.contract.test_padding import HUGE, disturbed
from tests.tolerances import assert_close

N = 40


def claiming(*names: str) -> list[str]:
    return [text for text in cases.ALL_BLOCKS if all(cases.block_supports(text, name) for name in names)]


def directed(*names: str) -> list[tuple[str, bool]]:
    return [(text, causal) for causal in (False, True) for text in claiming(direction(causal), *names)]


def direction(causal: bool) -> str:
    return "causal" if causal else "bidirectional"


def streams(x: Tensor, carry: Carry) -> list[Tensor]:
    """All that a block hands on."""
    return [x] if carry.stream is None else [x, carry.stream]


@pytest.mark.parametrize("text", claiming("causal"))
def test_blocks_ignore_the_future(text: str, generator: torch.Generator) -> None:
    block = cases.block(text, generator, causal=True)
    x = cases.draw((2, N, cases.DIM), generator, "clustered").requires_grad_()
    before = block(x, Carry())[0]
    for change in CHANGES:
        after = block(with_future(x, 20, change, generator), Carry())[0]
        assert_close(after[:, :20], before[:, :20], "rounding", f"{text}, {change.__name__}")
    (gradient,) = torch.autograd.grad(before[:, 20].sum(), x)
    assert not gradient[:, 21:].any()


@pytest.mark.parametrize(("text", "causal"), directed("padding"))
def test_padding_of_blocks_does_not_matter(text: str, causal: bool, generator: torch.Generator) -> None:
    block = cases.block(text, generator, causal)
    x = cases.draw((2, N, cases.DIM), generator)
    for side in ("left", "right", "holes"):
        real = cases.mask(side, N, generator)
        expected = block(x, Carry(key_is_real=real))
        for value in (0.0, HUGE):
            actual = block(disturbed(x, real, value), Carry(key_is_real=real))
            assert_close(actual[0][real], expected[0][real], "rounding", f"{text}, {side}")
            for a, b in zip(streams(*actual)[1:], streams(*expected)[1:], strict=True):
                assert_close(a, b, "rounding", f"second stream of {text}, {side}")
    padded, real = torch.cat([x[:, :7], x], 1), torch.arange(N + 7).expand(2, -1) >= 7
    assert_close(block(padded, Carry(key_is_real=real))[0][:, 7:], block(x, Carry())[0], "rounding", text)


@pytest.mark.parametrize(("text", "causal"), directed("segments"))
def test_documents_in_blocks_stand_alone(text: str, causal: bool, generator: torch.Generator) -> None:
    block = cases.block(text, generator, causal)
    x = cases.draw((2, N, cases.DIM), generator)
    segments = (torch.arange(N) >= 13).long().expand(2, -1)
    alone = torch.cat([block(x[:, :13], Carry())[0], block(x[:, 13:], Carry())[0]], 1)
    assert_close(block(x, Carry(segments=segments))[0], alone, "parity", text)


@pytest.mark.parametrize(("text", "causal"), directed())
def test_a_row_of_a_block_stands_alone(text: str, causal: bool, generator: torch.Generator) -> None:
    block = cases.block(text, generator, causal)
    row = cases.draw((1, N, cases.DIM), generator)
    batch = torch.cat([1e3 * cases.draw((1, N, cases.DIM), generator), row])
    for a, b in zip(streams(*block(batch, Carry())), streams(*block(row, Carry())), strict=True):
        assert_close(a[1:], b, "rounding", text)


@pytest.mark.parametrize("text", claiming("causal", "decode"))
def test_steps_of_blocks_equal_the_parallel_form(text: str, generator: torch.Generator) -> None:
    block = cases.block(text, generator, causal=True)
    x, real = cases.draw((2, N, cases.DIM), generator), cases.mask("left", N, generator)
    if not cases.block_supports(text, "padding"):
        real = torch.ones_like(real)
    with torch.no_grad():
        expected = block(x, Carry(key_is_real=None if real.all() else real))[0]
        for chunks in ([1] * N, [7, 1, 1, 31]):
            state, outputs, start = block.init_state(2), [], 0
            for count in chunks:
                rows = slice(start, start + count)
                y, _, state = block.step(x[:, rows], Carry(key_is_real=real[:, rows]), state)
                outputs.append(y)
                start += count
            assert_close(torch.cat(outputs, 1)[real], expected[real], "decode", text)


@pytest.mark.parametrize(("text", "causal"), directed())
def test_states_of_blocks_come_back_bit_for_bit(text: str, causal: bool, generator: torch.Generator) -> None:
    block = cases.block(text, generator, causal)
    again = cases.block(text, torch.Generator().manual_seed(99), causal)
    again.load_state_dict(block.state_dict())
    x = cases.draw((2, N, cases.DIM), generator)
    assert torch.equal(block(x, Carry())[0], again(x, Carry())[0])


@pytest.mark.parametrize(("text", "causal"), directed())
def test_every_parameter_of_a_block_is_used(text: str, causal: bool, generator: torch.Generator) -> None:
    block = cases.block(text, generator, causal)
    y, carry = block(cases.draw((2, N, cases.DIM), generator), Carry())
    sum(s.square().sum() for s in streams(y, carry)).backward()
    unused = [name for name, p in block.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unused
