"""Attention of other packages, one forward and backward of each on the inputs that ours are measured with.

Packages that take q, k and v get them; the others get hidden states [1, n, 512] and run with their
projections. Windows, clusters and features have the sizes of measure/specs.py.
"""

from __future__ import annotations

import importlib.metadata
import io
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mapformers.core.errors import require, require_known
from mapformers.measure.specs import PER_CLUSTER, WINDOW

Run = Callable[[], object]


@dataclass(frozen=True)
class Sizes:
    """n tokens, heads, size of a head."""

    n: int
    heads: int
    head_dim: int

    @property
    def dim(self) -> int:
        """Of hidden states."""
        return self.heads * self.head_dim


@dataclass(frozen=True)
class BenchPeer:
    """What runs: `build` makes a function of q, k, v or of hidden states, as `takes` says."""

    package: str
    of: str
    causal: bool
    takes: str
    build: Callable[[Sizes], Callable[..., Any]]


@dataclass(frozen=True)
class Made:
    """A peer that is ready to run."""

    run: Run
    causal: bool
    takes: str
    version: str


def _local(s: Sizes) -> Callable[..., Any]:
    from local_attention import LocalAttention

    window = min(WINDOW, s.n)
    return LocalAttention(window_size=window, causal=True, look_backward=1, autopad=True, dim=s.head_dim)


def _routing(s: Sizes) -> Callable[..., Any]:
    from routing_transformer.routing_transformer import KmeansAttention

    size = min(PER_CLUSTER, s.n)
    attention = KmeansAttention(max(1, s.n // size), size, s.heads, s.head_dim, causal=True)
    return lambda q, k, v: attention(q, k, v)[0]


def _reformer(s: Sizes) -> Callable[..., Any]:
    from reformer_pytorch import LSHAttention

    size = min(WINDOW // 2, s.n // 2)
    attention = LSHAttention(bucket_size=size, n_hashes=1, causal=True)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q.flatten(0, 1), v.flatten(0, 1))[0]  # queries serve as keys

    return run


def _performer(s: Sizes) -> Callable[..., Any]:
    from performer_pytorch import FastAttention

    return FastAttention(dim_heads=s.head_dim, nb_features=256, causal=False)


def _linear(s: Sizes) -> Callable[..., Any]:
    from linear_attention_transformer.linear_attention_transformer import causal_linear_attn

    return lambda q, k, v: causal_linear_attn(q, k, v, bucket_size=min(64, s.n))


def _nystrom(s: Sizes) -> Callable[..., Any]:
    from nystrom_attention import NystromAttention

    return NystromAttention(dim=s.dim, dim_head=s.head_dim, heads=s.heads, num_landmarks=64)


def _linformer(s: Sizes) -> Callable[..., Any]:
    from linformer import LinformerSelfAttention

    return LinformerSelfAttention(dim=s.dim, seq_len=s.n, heads=s.heads, k=min(256, s.n))


def _perceiver(s: Sizes) -> Callable[..., Any]:
    from perceiver_pytorch.perceiver_io import Attention

    latents = nn.Parameter(torch.zeros(1, 128, s.dim))
    attention = Attention(s.dim, s.dim, heads=s.heads, dim_head=s.head_dim)
    return lambda x: attention(latents, context=x)


def _longformer(s: Sizes) -> Callable[..., Any]:
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    config = LongformerConfig(
        hidden_size=s.dim, num_attention_heads=s.heads, attention_window=[2 * WINDOW], num_hidden_layers=1
    )
    attention = LongformerSelfAttention(config, layer_id=0).eval()
    mask, none = torch.zeros(1, s.n), torch.zeros(1, s.n, dtype=torch.bool)
    return lambda x: attention(
        x, mask, is_index_masked=none, is_index_global_attn=none, is_global_attn=False
    )[0]


def _nystromformer(s: Sizes) -> Callable[..., Any]:
    from transformers import NystromformerConfig
    from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

    config = NystromformerConfig(
        hidden_size=s.dim, num_attention_heads=s.heads, num_landmarks=64, segment_means_seq_len=s.n
    )
    attention = NystromformerSelfAttention(config).eval()
    return lambda x: attention(x)[0]


QKV, HIDDEN = "q, k, v", "hidden states"
BENCH_PEERS = {
    "local_attention": BenchPeer("local-attention", "band", True, QKV, _local),
    "routing_transformer": BenchPeer("routing-transformer", "routing", True, QKV, _routing),
    "reformer_pytorch": BenchPeer("reformer-pytorch", "reformer", True, QKV, _reformer),
    "performer_pytorch": BenchPeer("performer-pytorch", "performer", False, QKV, _performer),
    "linear_attention_transformer": BenchPeer("linear-attention-transformer", "linear", True, QKV, _linear),
    "nystrom_attention": BenchPeer("nystrom-attention", "nystrom", False, HIDDEN, _nystrom),
    "linformer (package)": BenchPeer("linformer", "linformer", False, HIDDEN, _linformer),
    "perceiver_pytorch": BenchPeer("perceiver-pytorch", "perceiver", False, HIDDEN, _perceiver),
    "transformers Longformer": BenchPeer("transformers", "longformer", False, HIDDEN, _longformer),
    "transformers Nystromformer": BenchPeer("transformers", "nystrom", False, HIDDEN, _nystromformer),
}


def installed_peers() -> tuple[str, ...]:
    """Names of the peers whose package is there. Raises MapformersError when none is."""
    found = tuple(name for name, peer in BENCH_PEERS.items() if _version(peer.package))
    packages = " ".join(dict.fromkeys(peer.package for peer in BENCH_PEERS.values()))
    require(bool(found), f"bench: --peers needs one or more of them, got none; pip install {packages}")
    return found


def missing_peers() -> tuple[str, ...]:
    """Packages that are not there."""
    return tuple(dict.fromkeys(p.package for p in BENCH_PEERS.values() if _version(p.package) is None))


def make_peer(name: str, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> Made:
    """One forward and backward of a peer on q, k, v, grad [1, H, n, D], or on hidden states of their size."""
    require_known("bench", "peer", name, BENCH_PEERS)
    peer, sizes = BENCH_PEERS[name], Sizes(q.shape[2], q.shape[1], q.shape[3])
    # Packages of others warn, print, and draw from the global generator.
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        built = peer.build(sizes)
    if isinstance(built, nn.Module):
        built = built.to(q.dtype)
    hidden = q.detach().transpose(1, 2).flatten(2).clone().requires_grad_()  # [1, n, H D]
    given = (q, k, v) if peer.takes == QKV else (hidden,)

    def run() -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            output = built(*given)
        return torch.autograd.grad(output.sum(), given, allow_unused=True)

    return Made(run, peer.causal, peer.takes, _version(peer.package) or "")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
