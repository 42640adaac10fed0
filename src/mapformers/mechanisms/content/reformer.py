"""Reformer (LSH attention): a query sees the latest other members of its hash bucket, in a few rounds.

Paper    Kitaev, Kaiser, Levskaya 2020, "Reformer: The Efficient Transformer", ICLR, arXiv 2001.04451.
Formula  h_r(i) = argmax [R_r k_i; -R_r k_i]; c_ij = number of rounds in which j is one of the last `window`
         other members of bucket h_r(i) up to i; w_ij ~ c_ij exp(q_i . k_j / sqrt(D)). A token sees itself
         only if it sees nothing else
Cost     time O(N b R D + N log N + N W R D) with R = rounds, b = buckets, W = window; memory O(N W R)
Differs  The paper sorts the whole sequence by bucket and cuts it into chunks, so the future decides which
         past keys are seen. Here (variant="strict") the bucket is looked up among the past, which is strictly
         causal and decodes exactly; variant="paper" is the published form. A key met in c rounds counts c
         times, as in the public code (the paper: once). Both want project="shared_qk"; with other
         projections a token's bucket is that of its key.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mapformers.core.card import RANGES, Card, option, options_of
from mapformers.core.errors import require, require_known
from mapformers.core.mechanism import Cost, Mechanism, Shape
from mapformers.core.plans import Plan, Union, Windows
from mapformers.core.scope import Scope
from mapformers.kernels.softmax import expand_heads, masked_softmax, scaled_scores
from mapformers.mechanisms.content.leak import refuse_leak, warn_of_leak
from mapformers.mechanisms.content.lsh import buckets_of, defined_buckets, draw_rotations
from mapformers.mechanisms.content.lsh_buckets import bucket_counts, bucket_windows
from mapformers.mechanisms.content.lsh_chunks import chunk_counts, chunk_groups
from mapformers.mechanisms.sparse.draws import draw_seed

OWN = -1e5  # log-weight of a token's own key


@dataclass(frozen=True)
class ReformerConfig:
    """Options of reformer."""

    buckets: int = option(16, "of every round; even")
    window: int = option(128, "other members of its bucket that a query sees (on each side, when not causal)")
    rounds: int = option(1, "of hashing, each with random directions of its own")
    variant: Literal["strict", "paper"] = option("strict", "paper = sorted chunks, the published form")
    chunk: int = option(64, 'tokens per chunk of variant="paper"')
    allow_selection_leak: bool = option(False, 'let variant="paper" run under causal=True, where it leaks')

    def __post_init__(self) -> None:
        for name in ("window", "rounds", "chunk"):
            value = getattr(self, name)
            require(
                value >= 1,
                f"reformer: {name} must be 1 or more, got {value}; drop it for the default",
            )
        require(
            self.buckets >= 2 and self.buckets % 2 == 0,
            f"reformer: buckets must be even and 2 or more, got {self.buckets}; use 16 for example",
        )
        require_known("reformer", "variant", self.variant, ("strict", "paper"))


class Reformer(Mechanism):
    """Attention inside hash buckets."""

    Config = ReformerConfig
    config: ReformerConfig
    seed: Tensor
    rotations: Tensor  # [G, R, b/2, D]
    card = Card(
        name="reformer",
        family="sparse, content-based",
        paper="Kitaev et al. 2020, arXiv 2001.04451",
        formula="softmax over the last `window` others in bucket h(i) = argmax [R k_i; -R k_i], by rounds",
        cost="time O(N b R D + N W R D), memory O(N W R)",
        summary="tokens hashed by content; a query sees the latest others of its bucket",
        supports=RANGES,
        options=options_of(ReformerConfig),
    )

    def __init__(self, config: ReformerConfig | None = None) -> None:
        super().__init__(config)
        self.register_buffer("seed", torch.zeros((), dtype=torch.long))
        self.register_buffer("rotations", None)
        warn_of_leak(self.config.allow_selection_leak, "reformer", 'variant="paper"')

    def build(self, shape: Shape, generator: torch.Generator) -> None:
        """The random directions of every round."""
        self.seed = draw_seed(generator)
        sizes = (shape.kv_heads, self.config.buckets // 2, shape.head_dim)
        self.rotations = draw_rotations(self.seed, sizes, range(self.config.rounds))

    def set_rounds(self, rounds: int) -> None:
        """Hash in so many rounds from now on, in evaluation for example; those there were stay the first."""
        self.config = replace(self.config, rounds=rounds)
        if self.shape is not None:
            kept = self.rotations[:, :rounds]
            more = draw_rotations(self.seed, tuple(kept[:, 0].shape), range(kept.shape[1], rounds))
            self.rotations = torch.cat([kept, more.to(kept)], 1)

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """The others, by bucket or by chunk, and the own key far below them."""
        config, heads, real = self.config, q.shape[1], scope.key_is_real
        bucket = buckets_of(k, self.rotations)  # [B, G, N, R]
        if config.variant == "paper":
            others: tuple[Plan, ...] = (chunk_groups(bucket, heads, scope, config.chunk),)
        else:
            others = bucket_windows(bucket, heads, scope, config.window, config.buckets)
        below = q.new_full((1, 1, q.shape[2], 1), OWN, dtype=torch.float32)
        rows = None if real is None else real.long()[:, None] - 1  # padding sees nothing
        return Union((*others, Windows(before=1, query_segment=rows, log_weight=below)))

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """Softmax with every score raised by the logarithm of the key's count."""
        n, m = q.shape[2], k.shape[2]
        visible = scope.visible(n, m, q.device)
        if scope.key_is_real is not None:
            visible = visible & scope.key_is_real[:, None, :, None]  # queries and keys are the same tokens
        own = torch.eye(n, dtype=torch.bool, device=q.device)
        bucket, others = defined_buckets(k, self.rotations), visible & ~own
        if self.config.variant == "paper":
            count = chunk_counts(bucket, scope, self.config.chunk) * others
        else:
            count = bucket_counts(bucket, others, own, self.config.window)
        count = expand_heads(count, q.shape[1])  # [B, H, N, N]
        raised = scaled_scores(q, k) + count.clamp(min=1).to(q.dtype).log() + OWN * own
        return masked_softmax(raised, (count > 0) | (visible & own))

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """Hashing, and the pairs inside the windows or chunks at most."""
        config = self.config
        w = min(config.window, n - 1)
        pairs = (n * w - w * (w + 1) / 2) * (1 if causal else 2)
        if config.variant == "paper":
            pairs = 2.0 * -(-n // config.chunk) * config.chunk**2
        pairs = config.rounds * pairs + n
        hashing = config.rounds * config.buckets * n
        return Cost(
            flops=batch * heads * (4.0 * pairs + hashing) * dim,
            bytes=batch * heads * (8.0 * pairs + 2.0 * config.buckets * n),
        )

    def check_causal(self, causal: bool) -> None:
        """The paper's form is causal only for those who ask for its leak."""
        leaks = self.config.variant == "paper" and causal and not self.config.allow_selection_leak
        refuse_leak(leaks, "reformer", 'variant="paper"', 'variant="strict"')

    def can_decode(self) -> bool:
        """The paper's form has no exact decoding: later tokens change earlier outputs."""
        return self.config.variant != "paper"
