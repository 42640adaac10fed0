"""Packed documents do not see each other, and a batch row does not see its neighbours."""

import pytest
import torch

import mapformers as mf
from tests.contract import cases
from tests.tolerances import assert_close

SIZES = (1, 2, 17, 6, 29, 12)
PACKED = [
    (text, causal)
    for text, causal in cases.with_directions((*cases.ALL, *cases.MIXTURES))
    if cases.supports(text, "segments") and "paper" not in text
]
EVERY = cases.with_directions((*cases.ALL, *cases.MIXTURES))


@pytest.mark.parametrize(("text", "causal"), PACKED)
def test_packed_documents_equal_the_documents_alone(text: str, causal: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    layer = cases.layer(text, generator, causal)
    x = cases.draw((2, sum(SIZES), cases.DIM), generator)
    names = torch.tensor([4, 0, 1, 9, 2, 3])  # need not be in order
    segments = names.repeat_interleave(torch.tensor(SIZES)).expand(2, -1)
    packed, alone = layer(x, segments=segments), [layer(part) for part in x.split(SIZES, 1)]
    assert_close(packed, torch.cat(alone, 1), "parity", text)


@pytest.mark.parametrize(("text", "causal"), PACKED)
def test_no_gradient_crosses_a_document(text: str, causal: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    layer = cases.layer(text, generator, causal)
    x = cases.draw((1, sum(SIZES), cases.DIM), generator, "clustered").requires_grad_()
    segments = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))[None]
    (gradient,) = torch.autograd.grad(layer(x, segments=segments)[segments == 2].sum(), x)
    assert not gradient[segments != 2].any(), text


@pytest.mark.parametrize(("text", "causal"), [c for c in PACKED if cases.supports(c[0], "padding")])
def test_documents_may_have_padding_inside(text: str, causal: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    layer = cases.layer(text, generator, causal)
    x = cases.draw((2, sum(SIZES), cases.DIM), generator)
    segments = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES)).expand(2, -1)
    real = cases.mask("holes", sum(SIZES), generator)
    real[:, :1] = False  # the first document is all padding
    packed = layer(x, segments=segments, key_is_real=real)
    alone = [
        layer(part, key_is_real=r) for part, r in zip(x.split(SIZES, 1), real.split(SIZES, 1), strict=True)
    ]
    assert_close(packed[real], torch.cat(alone, 1)[real], "parity", text)


@pytest.mark.parametrize(("text", "causal"), EVERY)
def test_a_row_alone_equals_the_row_in_a_batch(text: str, causal: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    layer = cases.layer(text, generator, causal)
    row = cases.draw((1, 67, cases.DIM), generator)
    alone = layer(row)
    noise = cases.draw((2, 67, cases.DIM), generator, "clustered")
    for neighbours in (noise, 1e6 * noise, torch.zeros_like(noise), row.expand(2, -1, -1)):
        batch = torch.cat([neighbours[:1], row, neighbours[1:]])
        assert_close(layer(batch)[1:2], alone, "rounding", text)
        if cases.supports(text, "padding"):
            real = torch.ones(3, 67, dtype=torch.bool)
            real[0] = False
            real[2, ::2] = False
            assert_close(layer(batch, key_is_real=real)[1:2], alone, "rounding", f"{text}, padded neighbours")


@pytest.mark.parametrize("text", [t for t in cases.with_capability("grouped") if "random" not in t])
def test_grouped_heads_equal_repeated_heads(text: str) -> None:
    """Random segments differ by key/value head, so they have no repeated form."""
    if "share_qk=true" in text:
        pytest.skip("shared queries and keys have as many heads as each other")
    if text.startswith("nsa"):
        pytest.skip("blocks are chosen by all query heads of a key/value head, so grouping is a choice")
    generator = torch.Generator().manual_seed(5)
    for kv_heads in (1, 2):
        grouped = cases.bound(text, generator, kv_heads)
        repeated = cases.fresh(text)
        state = {
            name: wide(tensor, repeated.state_dict()[name]) for name, tensor in grouped.state_dict().items()
        }
        repeated.load_state_dict(state)
        q, k, v = cases.draw_qkv(40, generator, kv_heads=kv_heads)
        many_k, many_v = (x.repeat_interleave(cases.HEADS // kv_heads, 1) for x in (k, v))
        for causal in cases.directions_of(text):
            few = mf.attend(grouped, q, k, v, causal=causal)
            assert_close(few, mf.attend(repeated, q, many_k, many_v, causal=causal), "rounding", text)


def wide(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A buffer per key/value head, repeated for every head."""
    same = tensor.shape == like.shape
    return tensor if same else tensor.repeat_interleave(like.shape[0] // tensor.shape[0], 0)
