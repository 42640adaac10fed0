"""Hugging Face's Reformer: its LSH attention is our published form, which is dense attention with counts."""

from typing import Any

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.attention.multi_head import MultiHeadAttention
from tests.tolerances import assert_close

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:reformer. allow_selection_leak:UserWarning"),
]
HEADS, HEAD_DIM, CHUNK, N = 3, 8, 6, 48  # the peer wants N to be a multiple of the chunk
DIM = HEADS * HEAD_DIM


@pytest.fixture(scope="module")
def module() -> Any:
    return pytest.importorskip(
        "transformers.models.reformer.modeling_reformer", reason="needs transformers with Reformer"
    )


def peer_of(module: Any, causal: bool, rounds: int, buckets: int, generator: torch.Generator) -> Any:
    config = module.ReformerConfig(
        hidden_size=DIM,
        num_attention_heads=HEADS,
        attention_head_size=HEAD_DIM,
        num_hashes=rounds,
        num_buckets=buckets,
        lsh_attn_chunk_length=CHUNK,
        lsh_attention_probs_dropout_prob=0.0,
        is_decoder=causal,
    )
    with torch.random.fork_rng(devices=[]):
        made = module.LSHSelfAttention(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / DIM**0.5)
    return made.eval()


def ours(peer: Any, causal: bool) -> MultiHeadAttention:
    """A layer with the peer's weights that hands out its heads as they are."""
    layer = mf.attention(
        f"reformer(buckets={peer.num_buckets}, rounds={peer.num_hashes}, variant=paper, chunk={CHUNK}, "
        f"allow_selection_leak={str(causal).lower()})",
        DIM,
        HEADS,
        causal=causal,
        project="shared_qk",
    )
    state = layer.state_dict()
    state["project.query_key.weight"] = peer.query_key.weight
    state["project.value.weight"] = peer.value.weight
    state["merge.output.weight"] = torch.eye(DIM)
    layer.load_state_dict(state)
    return layer.eval()


def output_of(
    peer: Any, layer: MultiHeadAttention, x: Tensor, real: Tensor, monkeypatch: pytest.MonkeyPatch
) -> Tensor:
    """The peer's heads, with our rotations where it draws its own: [H, D, R, b/2]."""
    rotations = layer.mechanisms[0].rotations.permute(0, 3, 1, 2)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "randn", lambda *shape, **options: rotations)
        return peer(x, attention_mask=None if real.all() else real).hidden_states


def weights_of(layer: MultiHeadAttention, x: Tensor, real: Tensor, causal: bool) -> Tensor:
    q, k, _ = layer.project(x, x)
    return mf.dense_weights(layer.mechanisms[0], q, k, causal=causal, key_is_real=real)


@pytest.mark.parametrize("padding", [0, CHUNK - 1])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("rounds", "buckets"), [(1, 4), (2, 4), (4, 8)])
def test_the_same_numbers_and_gradients(
    module: Any,
    rounds: int,
    buckets: int,
    causal: bool,
    padding: int,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But for tokens that see nothing else: at -1e5 the peer's float32 log-sum-exp has steps of 1 / 128."""
    peer = peer_of(module, causal, rounds, buckets, generator)
    layer, x = ours(peer, causal), torch.randn(2, N, DIM, generator=generator)
    real = torch.ones(2, N, dtype=torch.bool)
    real[1, N - padding :] = False
    weights = weights_of(layer, x, real, causal)
    lonely = (weights.diagonal(dim1=-2, dim2=-1) > 0).any(1)  # [B, N] in some head
    kept = real & ~lonely
    assert kept.sum() > N, "too few rows to compare"
    one, other = (x.clone().requires_grad_() for _ in range(2))
    got = layer(one, key_is_real=real)
    expected = output_of(peer, layer, other, real, monkeypatch)
    counted = (weights @ layer.project(x, x)[2]).transpose(1, 2).flatten(2)
    assert_close(got[kept], counted[kept], "parity", "our plan and our counts")
    assert_close(got[kept], expected[kept], "parity", "our plan and the peer")
    direction = torch.randn(got[kept].shape, generator=generator)
    (ours_x,) = torch.autograd.grad((got[kept] * direction).sum(), one)
    (peer_x,) = torch.autograd.grad((expected[kept] * direction).sum(), other)
    assert_close(ours_x[real], peer_x[real], "gradient")


def test_counts_matter(module: Any, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison has teeth: with every key counted once, as the paper says, the numbers differ."""
    peer = peer_of(module, False, 4, 4, generator)
    layer, x = ours(peer, False), torch.randn(2, N, DIM, generator=generator)
    real = torch.ones(2, N, dtype=torch.bool)
    once = mf.mechanism("full").dense_weights(*layer.project(x, x)[:2], mf.core.scope.Scope())
    once = once * (weights_of(layer, x, real, False) > 0)
    once = once / once.sum(-1, keepdim=True)
    heads = (once @ layer.project(x, x)[2]).transpose(1, 2).flatten(2)
    assert (heads - output_of(peer, layer, x, real, monkeypatch)).abs().max() > 0.01
