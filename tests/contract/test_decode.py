"""Decoding equals the parallel form: one by one, in chunks of any size, with padding, with beams."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from mapformers.attention.multi_head import MultiHeadAttention
from tests.contract import cases
from tests.tolerances import assert_close

N = 45
CHUNKS = {
    "one by one": [1] * N,
    "at once": [N],
    "mixed": [5, 1, 1, 20, 18],
    "thirteen": [13] * 3 + [6],
}
# These must keep every key; all others keep a bounded state.
GROWING = {
    "low_rank_band",
    "full",
    "strided(",
    "random(",
    "moba(",
    "sac(",
    "nsa(",
    "informer(factor",
    "memory_compressed",
    "axis=column",
    "part=both",
    "part=summary",
}
DECODING = cases.with_capability("causal", "decode") + list(cases.MIXTURES)


def stepped(layer: MultiHeadAttention, x: Tensor, real: Tensor | None, chunks: list[int]) -> Tensor:
    state, outputs, start = layer.init_state(x.shape[0]), [], 0
    for count in chunks:
        rows = slice(start, start + count)
        y, state = layer.step(x[:, rows], state, key_is_real=None if real is None else real[:, rows])
        outputs.append(y)
        start += count
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS.keys())
@pytest.mark.parametrize("text", DECODING)
def test_steps_equal_the_parallel_form(text: str, chunks: list[int], generator: torch.Generator) -> None:
    layer = cases.layer(text, generator, causal=True)
    x = cases.draw((3, N, cases.DIM), generator)
    real = cases.mask("left", N, generator, batch=3)  # the first row has no padding
    real[2] = cases.mask("holes", N, generator, batch=3)[2]
    with torch.no_grad():
        parallel, decoded = layer(x, key_is_real=real), stepped(layer, x, real, chunks)
    for row in range(3):
        assert_close(decoded[row, real[row]], parallel[row, real[row]], "decode", f"{text}, row {row}")


@pytest.mark.parametrize("kind", ["clustered", "duplicated", "zeros"])
@pytest.mark.parametrize("text", DECODING)
def test_steps_equal_the_parallel_form_on_hard_inputs(
    text: str, kind: str, generator: torch.Generator
) -> None:
    layer = cases.layer(text, generator, causal=True)
    x = cases.draw((2, 28, cases.DIM), generator, kind)
    with torch.no_grad():
        assert_close(stepped(layer, x, None, [1] * 8 + [13] + [1] * 7), layer(x), "decode", f"{text}, {kind}")


@pytest.mark.parametrize(
    "options", [{"kv_heads": 2}, {"score": "alibi"}, {"head_dim": 6, "kv_heads": 1}], ids=str
)
@pytest.mark.parametrize("text", cases.with_capability("causal", "decode"))
def test_steps_with_other_ports(text: str, options: dict, generator: torch.Generator) -> None:
    if "score" in options and not cases.supports(text, "score"):
        pytest.skip("refuses score terms; see test_capabilities.py")
    if "kv_heads" in options and "share_qk=true" in text:
        pytest.skip("shared queries and keys have as many heads as each other")
    layer = cases.layer(text, generator, causal=True, **options)
    x = cases.draw((2, 24, cases.DIM), generator)
    with torch.no_grad():
        for chunks in ([1] * 8 + [9] + [1] * 7, [24]):
            assert_close(stepped(layer, x, None, chunks), layer(x), "decode", f"{text}, {options}")


@pytest.mark.parametrize("text", DECODING)
def test_beams_can_be_reordered(text: str, generator: torch.Generator) -> None:
    layer = cases.layer(text, generator, causal=True)
    x, later = cases.draw((3, 20, cases.DIM), generator), cases.draw((4, 9, cases.DIM), generator)
    index = torch.tensor([2, 0, 0, 1])
    with torch.no_grad():
        _, state = layer.step(x, layer.init_state(3))
        state = state.reorder(index)
        outputs = []
        for t in range(9):
            y, state = layer.step(later[:, t : t + 1], state)
            outputs.append(y)
        expected = layer(torch.cat([x[index], later], 1))[:, 20:]
    assert_close(torch.cat(outputs, 1), expected, "decode", text)
    assert state.length.tolist() == [29] * 4


@pytest.mark.parametrize("text", DECODING)
def test_the_state_is_bounded(text: str, generator: torch.Generator) -> None:
    layer = cases.layer(text, generator, causal=True)
    sizes = []
    with torch.no_grad():
        state = layer.init_state(1)
        for count in (90, 90):
            _, state = layer.step(cases.draw((1, count, cases.DIM), generator), state)
            sizes.append(numbers_in(state))
    grows = any(name in text for name in GROWING)
    assert (sizes[1] > sizes[0]) if grows else (sizes[1] == sizes[0]), sizes


@pytest.mark.parametrize("text", DECODING)
def test_a_state_says_how_many_real_tokens_it_has_seen(text: str, generator: torch.Generator) -> None:
    layer = cases.layer(text, generator, causal=True)
    real = cases.mask("holes", 20, generator)
    with torch.no_grad():
        _, state = layer.step(
            cases.draw((2, 20, cases.DIM), generator), layer.init_state(2), key_is_real=real
        )
    assert torch.equal(state.length, real.sum(1))


def numbers_in(state: object) -> int:
    """How many numbers a state holds."""
    if isinstance(state, Tensor):
        return state.numel()
    if isinstance(state, list | tuple):
        return sum(map(numbers_in, state))
    if dataclasses.is_dataclass(state) and not isinstance(state, nn.Module):
        return sum(numbers_in(getattr(state, field.name)) for field in dataclasses.fields(state))
    return 0
