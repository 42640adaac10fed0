"""Nystromformer of Hugging Face and the package nystrom-attention, on inputs without padding."""

from typing import Any

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.core.mechanism import Shape
from mapformers.mechanisms.low_rank import nystrom
from tests.tolerances import assert_close

pytestmark = pytest.mark.peers
HEADS, HEAD_DIM, MARKS, N, TAPS = 3, 8, 4, 32, 5  # the peers want N to be a multiple of the landmarks
DIM = HEADS * HEAD_DIM


def whole_batch(a: Tensor, iterations: int) -> Tensor:
    """The published start: one largest column sum over all matrices. (Row sums are one.)"""
    z = a.mT / a.sum(-2).max()
    one = torch.eye(a.shape[-1], dtype=a.dtype)
    for _ in range(iterations):
        z = 0.25 * z @ (13 * one - a @ z @ (15 * one - a @ z @ (7 * one - a @ z)))
    return z


def draw_into(module: Any, generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / DIM**0.5)


def test_hugging_face(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    peers = pytest.importorskip(
        "transformers.models.nystromformer.modeling_nystromformer",
        reason="needs transformers with Nystromformer",
    )
    config = peers.NystromformerConfig(
        hidden_size=DIM,
        num_attention_heads=HEADS,
        num_landmarks=MARKS,
        segment_means_seq_len=N,
        conv_kernel_size=TAPS,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        peer = peers.NystromformerSelfAttention(config).double().eval()
    draw_into(peer, generator)
    x = torch.randn(2, N, DIM, generator=generator, dtype=torch.float64)
    q, k, v = (
        part(x).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)
        for part in (peer.query, peer.key, peer.value)
    )
    made = mf.mechanism("nystrom", landmarks=MARKS, kernel=TAPS).bind(Shape(HEADS, HEADS, HEAD_DIM)).double()
    with torch.no_grad():
        made.get_parameter("taps").copy_(peer.conv.weight.view(HEADS, TAPS))
    monkeypatch.setattr(nystrom, "pseudo_inverse", whole_batch)
    ours = mf.attend(made, q, k, v).transpose(1, 2).flatten(2)
    assert_close(ours, peer(x)[0], "parity")


def test_nystrom_attention(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    peers = pytest.importorskip("nystrom_attention", reason="needs the package nystrom-attention")
    with torch.random.fork_rng(devices=[]):
        peer = peers.NystromAttention(
            DIM, HEAD_DIM, HEADS, MARKS, pinv_iterations=6, residual=True, residual_conv_kernel=TAPS
        )
    peer = peer.double().eval()
    draw_into(peer, generator)
    x = torch.randn(2, N, DIM, generator=generator, dtype=torch.float64)
    q, k, v = (
        part.unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2) for part in peer.to_qkv(x).chunk(3, dim=-1)
    )
    made = mf.mechanism("nystrom", landmarks=MARKS, kernel=TAPS).bind(Shape(HEADS, HEADS, HEAD_DIM)).double()
    with torch.no_grad():
        made.get_parameter("taps").copy_(peer.res_conv.weight.view(HEADS, TAPS))
    monkeypatch.setattr(nystrom, "pseudo_inverse", whole_batch)
    ours = peer.to_out(mf.attend(made, q, k, v).transpose(1, 2).flatten(2))
    assert_close(ours, peer(x), "parity")
