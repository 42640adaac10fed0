"""Hugging Face's block-sparse BigBird: the same numbers in training, another pattern in evaluation."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.core.mechanism import Mechanism, Shape
from mapformers.kernels.softmax import masked_softmax, scaled_scores
from mapformers.mechanisms.sparse.bigbird_blocks import Blocks, Place
from tests.tolerances import assert_close

pytestmark = pytest.mark.peers
B, HEADS, DIM, BLOCK, RANDOM = 2, 3, 8, 4, 3
N = 14 * BLOCK
np = pytest.importorskip("numpy", reason="transformers needs numpy, and seeds its global generator")


@pytest.fixture(autouse=True)
def numpy_state() -> Iterator[None]:
    """The peer seeds numpy's global generator in every forward of training."""
    before = np.random.get_state()
    yield
    np.random.set_state(before)


@pytest.fixture(scope="module")
def module() -> Any:
    return pytest.importorskip(
        "transformers.models.big_bird.modeling_big_bird", reason="needs transformers with BigBird"
    )


@pytest.fixture
def peer(module: Any) -> Any:
    config = module.BigBirdConfig(
        hidden_size=HEADS * DIM,
        num_attention_heads=HEADS,
        block_size=BLOCK,
        num_random_blocks=RANDOM,
        max_position_embeddings=N,
    )
    with torch.random.fork_rng(devices=[]):
        return module.BigBirdBlockSparseAttention(config, seed=0)


@pytest.fixture
def ours() -> Mechanism:
    made = mf.mechanism("bigbird", block=BLOCK, random=RANDOM)
    return made.bind(Shape(HEADS, HEADS, DIM), torch.Generator().manual_seed(0))


def output_of(peer: Any, module: Any, qkv: list[Tensor]) -> Tensor:
    """[B, H, N, D] of the peer's own block-sparse path."""
    real = torch.ones(B, N, dtype=qkv[0].dtype)
    blocked, band, from_mask, to_mask = module.BigBirdModel.create_masks_for_block_sparse_attn(real, BLOCK)
    sizes = (HEADS, RANDOM, DIM, BLOCK, BLOCK, B, N, N)
    found, _ = peer.bigbird_block_sparse_attention(
        *qkv, band, from_mask, to_mask, blocked, blocked, *sizes, 0, None, None
    )
    return found.reshape(B, N, HEADS, DIM).transpose(1, 2)


def plan_of(ours: Mechanism) -> list[Any]:
    """Our random blocks in the peer's form: for each head, [blocks - 2, random]."""
    block = torch.arange(1, N // BLOCK - 1)[None]
    named = Blocks(ours.config).named(
        ours._state(HEADS, block), Place(block, torch.tensor([[N // BLOCK]]))
    )  # first, window, random, last
    return list(named[0, :, :, 4 : 4 + RANDOM].numpy())


def test_training_with_our_plan_gives_our_numbers(
    peer: Any, module: Any, ours: Mechanism, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves = [torch.randn(B, HEADS, N, DIM, generator=generator).requires_grad_() for _ in range(3)]
    monkeypatch.setattr(peer, "_bigbird_block_rand_mask_with_head", lambda **sizes: plan_of(ours))
    theirs = output_of(peer.train(), module, leaves)
    mine = mf.attend(ours, *leaves)
    assert_close(mine, theirs, "parity")
    direction = torch.randn(mine.shape, generator=generator)
    for a, b in zip(
        torch.autograd.grad((mine * direction).sum(), leaves),
        torch.autograd.grad((theirs * direction).sum(), leaves),
        strict=True,
    ):
        assert_close(a, b, "gradient")


def test_its_evaluation_draws_nothing_and_counts_the_first_block_again(
    peer: Any, module: Any, ours: Mechanism, generator: torch.Generator
) -> None:
    """What the peer does in evaluation is the softmax in which block 0 counts 1 + random times."""
    qkv = [torch.randn(B, HEADS, N, DIM, generator=generator) for _ in range(3)]
    theirs = output_of(peer.eval(), module, qkv)
    fixed = mf.mechanism("bigbird", block=BLOCK, random=0)
    shown = mf.dense_weights(fixed, qkv[0], qkv[1]) > 0
    count = torch.ones(N, N)
    count[BLOCK:-BLOCK, :BLOCK] = 1 + RANDOM
    counted = masked_softmax(scaled_scores(*qkv[:2]) + count.log(), shown) @ qkv[2]
    assert_close(theirs, counted, "parity")
    assert (theirs - mf.attend(ours, *qkv)).abs().max() > 0.1, "another pattern than in training"
