"""The package linformer, on inputs without padding: it has no mask."""

import pytest
import torch

import mapformers as mf
from mapformers.core.mechanism import Shape
from tests.tolerances import assert_close

pytestmark = pytest.mark.peers
HEADS, HEAD_DIM, RANK, LENGTH = 3, 8, 5, 40
DIM = HEADS * HEAD_DIM


@pytest.mark.parametrize("n", [LENGTH, 23])
def test_linformer(n: int, generator: torch.Generator) -> None:
    peers = pytest.importorskip("linformer", reason="needs the package linformer")
    with torch.random.fork_rng(devices=[]):
        peer = peers.LinformerSelfAttention(DIM, LENGTH, k=RANK, heads=HEADS).double().eval()
    x = torch.randn(2, n, DIM, generator=generator, dtype=torch.float64)
    q, k, v = (
        part(x).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2) for part in (peer.to_q, peer.to_k, peer.to_v)
    )
    made = mf.mechanism("linformer", rank=RANK, length=LENGTH, sharing="headwise")
    made.bind(Shape(HEADS, HEADS, HEAD_DIM)).double()
    with torch.no_grad():
        made.get_parameter("key_projection").copy_(peer.proj_k.T[None])
        made.get_parameter("value_projection").copy_(peer.proj_v.T[None])
    ours = peer.to_out(mf.attend(made, q, k, v).transpose(1, 2).flatten(2))
    assert_close(ours, peer(x), "parity")
