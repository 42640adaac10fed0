"""longformer: by hand, against one mask under SDPA, global tokens, dilation head by head."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mapformers as mf
from tests.contract import cases
from tests.mechanisms.test_by_hand import H, Q, T, assert_rows
from tests.tolerances import assert_close

N = 61


def mask_of(window: int, dilation: int, count: int, causal: bool, rank: Tensor) -> Tensor:
    """[B, 1, N, N] bool, band OR g(i) OR g(j) over the ranks [B, N] of the tokens."""
    i, j = rank[:, None, :, None], rank[:, None, None, :]
    step = i - j
    band = (step.abs() <= window * dilation) & (step % dilation == 0)
    return (band | (i < count) | (j < count)) & ((step >= 0) | (not causal))


def test_by_hand() -> None:
    made = mf.mechanism("longformer", window=1, global_tokens=1)
    assert_rows(made, False, [[Q] * 4, [T, T, T, 0], [Q] * 4, [T, 0, T, T]])
    assert_rows(made, True, [[1, 0, 0, 0], [H, H, 0, 0], [T, T, T, 0], [T, 0, T, T]])


def test_dilation_by_hand() -> None:
    """Window 1, gaps of 2, the first token global."""
    made = mf.mechanism("longformer", window=1, dilation=2, global_tokens=1)
    assert_rows(made, False, [[Q] * 4, [T, T, 0, T], [H, 0, H, 0], [T, T, 0, T]])
    assert_rows(made, True, [[1, 0, 0, 0], [H, H, 0, 0], [H, 0, H, 0], [T, T, 0, T]])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("window", "dilation", "count"),
    [(5, 1, 0), (5, 1, 4), (0, 1, 1), (3, 4, 0), (3, 4, 6), (2, 50, 3), (90, 1, 9), (1, 2, 90)],
)
def test_one_mask_over_one_softmax(
    window: int, dilation: int, count: int, causal: bool, generator: torch.Generator
) -> None:
    """A key that is global and near counts once; so the whole is dense attention under one mask."""
    made = mf.mechanism("longformer", window=window, dilation=dilation, global_tokens=count)
    q, k, v = cases.draw_qkv(N, generator)
    mask = mask_of(window, dilation, count, causal, torch.arange(N)[None])
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert_close(mf.attend(made, q, k, v, causal=causal), expected, "parity")


@pytest.mark.parametrize("causal", [False, True])
def test_global_tokens_are_the_first_real_ones_of_each_document(
    causal: bool, generator: torch.Generator
) -> None:
    """Two documents, each with padding in front and inside: as if each stood alone and without padding."""
    made = mf.mechanism("longformer", window=2, dilation=2, global_tokens=2)
    q, k, v = cases.draw_qkv(30, generator, batch=1)
    segments = (torch.arange(30) >= 17).long()[None]
    real = torch.rand(1, 30, generator=generator) > 0.3
    real[0, [0, 17]] = False
    got = mf.attend(made, q, k, v, causal=causal, segments=segments, key_is_real=real)
    for document in (0, 1):
        rows = (real & (segments == document))[0]
        alone = mf.attend(made, *(x[:, :, rows] for x in (q, k, v)), causal=causal)
        assert_close(got[:, :, rows], alone, "rounding")


@pytest.mark.parametrize("causal", [False, True])
def test_without_global_tokens_it_is_the_atom(causal: bool, generator: torch.Generator) -> None:
    q, k, v = cases.draw_qkv(N, generator)
    for options, atom in (
        ({"window": 5}, mf.mechanism("band", window=5)),
        ({"window": 5, "dilation": 3}, mf.mechanism("dilated", window=5, dilation=3)),
    ):
        got = mf.attend(mf.mechanism("longformer", **options), q, k, v, causal=causal)
        assert_close(got, mf.attend(atom, q, k, v, causal=causal), "rounding")


@pytest.mark.parametrize("causal", [False, True])
def test_heads_may_have_dilations_of_their_own(causal: bool, generator: torch.Generator) -> None:
    """The paper dilates two heads: a mixture, equal to dense attention under one mask per head."""
    text = "longformer(window=4, global_tokens=2):2 + longformer(window=4, dilation=3, global_tokens=2):2"
    layer = mf.attention(text, cases.DIM, cases.HEADS, causal=causal).double()
    x = cases.draw((2, N, cases.DIM), generator)
    masks = [mask_of(4, d, 2, causal, torch.arange(N)[None]).expand(1, 2, -1, -1) for d in (1, 3)]
    heads = F.scaled_dot_product_attention(*layer.project(x, x), attn_mask=torch.cat(masks, 1))
    assert_close(layer(x), layer.merge(heads), "parity")


def test_a_causal_state_holds_the_window_and_the_global_tokens(generator: torch.Generator) -> None:
    layer = mf.attention("longformer(window=3, dilation=2, global_tokens=5)", 32, 4, causal=True)
    _, state = layer.step(cases.draw((1, 90, 32), generator).float(), layer.init_state(1))
    band, columns = state.parts[0].parts
    assert band.window * band.owner.shape[-1] == (3 + 1) * 2
    assert columns.window * columns.owner.shape[-1] == 5


@pytest.mark.parametrize(
    ("options", "word"),
    [({"window": -1}, "window"), ({"dilation": 0}, "dilation"), ({"global_tokens": -1}, "global_tokens")],
)
def test_bad_options_are_refused_by_name(options: dict[str, int], word: str) -> None:
    with pytest.raises(mf.MapformersError, match=f"longformer: {word} must be .*, got .*; "):
        mf.mechanism("longformer", **options)
