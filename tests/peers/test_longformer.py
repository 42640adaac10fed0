"""Hugging Face's Longformer self-attention: local and global rows, with padding, and their gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.attention.multi_head import MultiHeadAttention
from tests.tolerances import assert_close

pytestmark = pytest.mark.peers
HEADS, DIM, WINDOW, N = 3, 24, 4, 48  # the peer wants N to be a multiple of both sides of the window


@pytest.fixture
def peer(generator: torch.Generator) -> Any:
    module = pytest.importorskip(
        "transformers.models.longformer.modeling_longformer", reason="needs transformers with Longformer"
    )
    config = module.LongformerConfig(
        hidden_size=DIM,
        num_attention_heads=HEADS,
        attention_window=[2 * WINDOW],
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        made = module.LongformerSelfAttention(config, 0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / DIM**0.5)
            if name.endswith("bias"):  # ours have none
                parameter.zero_()
    return made.eval()


def ours(peer: Any, count: int) -> MultiHeadAttention:
    """A layer with the peer's weights that hands out its heads as they are."""
    text = f"longformer(window={WINDOW}, global_tokens={count})"
    layer = mf.attention(text, DIM, HEADS, project="local_global" if count else None)
    state = {"merge.output.weight": torch.eye(DIM)}
    for name in ("query", "key", "value"):
        state[f"project.{name}.weight"] = getattr(peer, name).weight
        if count:
            state[f"project.global_{name}.weight"] = getattr(peer, f"{name}_global").weight
    layer.load_state_dict(state)
    return layer.eval()


def output_of(peer: Any, x: Tensor, real: Tensor, count: int) -> Tensor:
    """The peer's marks: below zero = padding, above zero = global; the first real tokens are global."""
    is_global = real & (real.long().cumsum(1) <= count)
    marks = 10000.0 * (is_global.long() - (~real).long())
    return peer(
        x,
        attention_mask=marks,
        is_index_masked=marks < 0,
        is_index_global_attn=marks > 0,
        is_global_attn=count > 0,
    )[0]


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_same_numbers(peer: Any, count: int, side: str, generator: torch.Generator) -> None:
    x = torch.randn(2, N, DIM, generator=generator)
    real = torch.ones(2, N, dtype=torch.bool)
    if side != "none":
        real[1, slice(0, 13) if side == "left" else slice(N - 13, N)] = False
    layer, (a, b) = ours(peer, count), (x.clone().requires_grad_() for _ in range(2))
    got, expected = layer(a, key_is_real=real)[real], output_of(peer, b, real, count)[real]
    assert_close(got, expected, "parity")
    direction = torch.randn(got.shape, generator=generator)
    (ours_x,) = torch.autograd.grad((got * direction).sum(), a)
    (peer_x,) = torch.autograd.grad((expected * direction).sum(), b)
    assert_close(ours_x[real], peer_x[real], "gradient")


def test_the_second_set_of_projections_matters(peer: Any, generator: torch.Generator) -> None:
    """The comparison has teeth: with one set alone the global rows differ, and the local ones do not."""
    x, real, count = torch.randn(2, N, DIM, generator=generator), torch.ones(2, N, dtype=torch.bool), 5
    text = f"longformer(window={WINDOW}, global_tokens={count})"
    tied = mf.attention(text, DIM, HEADS)
    tied.load_state_dict({k: v for k, v in ours(peer, count).state_dict().items() if "global" not in k})
    got, expected = tied(x), output_of(peer, x, real, count)
    assert_close(got[:, count:], expected[:, count:], "parity")
    assert (got - expected)[:, :count].abs().amax(-1).min() > 0.01
