"""What the tests of distance terms share."""

import torch
from torch import Tensor

import mapformers as mf
from mapformers.core.score import Pairs, ScoreTerm


def matrix(term: ScoreTerm, heads: int, positions: Tensor, batch: int = 1) -> Tensor:
    """[batch, heads, N, N] what a term adds to all pairs of the positions [N]."""
    found = term.tile(
        Pairs(
            batch=torch.arange(batch).view(-1, 1, 1, 1),
            head=torch.arange(heads).view(1, -1, 1, 1),
            query=positions[None, None, :, None],
            key=positions[None, None, None, :],
        )
    )
    return found.expand(batch, heads, len(positions), len(positions))


def drawn(heads: int, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q, k, v [2, heads, n, 8] with gradients."""
    return [torch.randn(2, heads, n, 8, generator=generator, dtype=dtype).requires_grad_() for _ in range(3)]


def by_softmax(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, causal: bool) -> Tensor:
    """Full attention written out; q and k None where they do not count."""
    scores = q @ k.mT / q.shape[-1] ** 0.5 + bias
    if causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), float("-inf"))
    return scores.softmax(-1) @ v


def decodes_as_forward(
    mechanism: str, text: str, generator: torch.Generator, n: int = 23
) -> tuple[Tensor, Tensor]:
    """A causal layer with the term token by token, and in parallel: [2, n, 16] each."""
    layer = mf.attention(mechanism, 16, 2, causal=True, score=text).double().eval()
    x = torch.randn(2, n, 16, generator=generator, dtype=torch.float64)
    state, outputs = layer.init_state(2), []
    for t in range(n):
        y, state = layer.step(x[:, t : t + 1], state)
        outputs.append(y)
    return torch.cat(outputs, 1), layer(x)
