"""Random choices that depend on counters alone: the same for the same seed, head, row and draw, whatever else
is in the call. So a pattern is the same in training, evaluation and decoding, and a prefix keeps its own.

The hash is the finaliser of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
generators", OOPSLA). Subsets are drawn as Floyd does (Bentley and Floyd 1987, "A sample of brilliance", CACM
30(9)): one step for each member, and no list of the pool.
"""

import torch
from torch import Tensor

from mapformers.core.scope import Scope


def _signed(bits: int) -> int:
    """The int64 with the same last 64 bits."""
    bits &= (1 << 64) - 1
    return bits - (1 << 64) if bits >> 63 else bits


GOLDEN = _signed(0x9E3779B97F4A7C15)
FIRST = _signed(0xBF58476D1CE4E5B9)
SECOND = _signed(0x94D049BB133111EB)


def draw_seed(generator: torch.Generator) -> Tensor:
    """[] int64 from the generator. On the meta device nothing is drawn."""
    if torch.get_default_device().type == "meta":
        return torch.empty((), dtype=torch.long, device="meta")
    return torch.randint(1 << 62, (), generator=generator, device=generator.device)


def hashed(seed: Tensor, *counters: Tensor | int) -> Tensor:
    """int64 bits out of the seed and counters of 0 or more; broadcasts. Products wrap around."""
    state = _mixed(seed + GOLDEN)
    for counter in counters:
        jump = (counter + 1) * GOLDEN
        state = _mixed(state + (_signed(jump) if isinstance(jump, int) else jump))
    return state


def below(bits: Tensor, bound: Tensor) -> Tensor:
    """Uniform in [0, bound), up to bound / 2^63."""
    return _shifted(bits, 1) % bound


def subset(state: Tensor, pool: Tensor, count: int) -> Tensor:
    """[.., count] different numbers of [0, pool), every set of them as likely as any other.

    state [..] bits of each row, pool [..] its size. A smaller pool than `count` is taken whole; the places
    left over hold -1. Memory O(rows count).
    """
    state, pool = torch.broadcast_tensors(state, pool)
    chosen: list[Tensor] = []
    for step in range(count):
        last = pool - count + step  # this step draws from 0..last, and takes `last` if that is taken
        number = below(hashed(state, step), (last + 1).clamp(min=1))
        for earlier in chosen:
            number = torch.where(earlier == number, last, number)
        chosen.append(number.masked_fill(last < 0, -1))
    return torch.stack(chosen, -1) if chosen else pool.new_zeros(*pool.shape, 0)


def document_lengths(scope: Scope, m: int, device: torch.device) -> Tensor:
    """[B or 1, M or 1] real tokens of the document that each key lies in."""
    documents, real = scope.documents_of_keys(), scope.key_is_real
    if documents is None:
        return torch.full((1, 1), m, device=device) if real is None else real.sum(1, keepdim=True)
    if real is None:
        real = torch.ones_like(documents, dtype=torch.bool)
    documents, real = torch.broadcast_tensors(documents, real)
    border = torch.ones_like(documents, dtype=torch.bool)
    border[:, 1:] = documents[:, 1:] != documents[:, :-1]
    number = border.long().cumsum(1) - 1  # of the document in its row
    total = torch.zeros_like(number).scatter_add(1, number, real.long())
    return total.gather(1, number)


def query_lengths(scope: Scope, n: int, m: int, device: torch.device) -> Tensor:
    """[B or 1, N or 1] the same of the queries."""
    lengths = document_lengths(scope, m, device)
    return lengths if lengths.shape[1] == 1 else lengths[:, scope.query_start : scope.query_start + n]


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * FIRST
    x = (x ^ _shifted(x, 27)) * SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, count: int) -> Tensor:
    """The bits moved right, zeros moving in."""
    return (x >> count) & ((1 << (64 - count)) - 1)
