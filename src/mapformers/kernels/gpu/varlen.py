"""Windows as sequences of any length under one sliding window: torch's varlen_attn, a FlashAttention.

Untested on a GPU: the tests hold its arguments against their documented meaning on the CPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mapformers.core.attended import Attended
from mapformers.core.plans import Windows
from mapformers.core.scope import Scope
from mapformers.kernels.gpu.switch import may_run_here
from mapformers.kernels.softmax import default_scale

DTYPES = (torch.float16, torch.bfloat16)
LARGEST_DIM, MULTIPLE_OF_DIM = 256, 8  # of a head, for FlashAttention
OLDEST_GPU = (8, 0)  # compute capability


class VarlenArguments(NamedTuple):
    """What varlen_attn takes beside q, k and v. All batch rows lie one after the other, [B N, H, D].

    order       [T] rows that lie in some sequence, sequence after sequence; None = all rows as they lie
    cu_seq_q    [sequences + 1] int32, where the queries of each sequence begin, and the end of the last
    cu_seq_k    the same of the keys
    max_q       queries of the longest sequence
    max_k       keys of the longest sequence
    window      how many keys before the own one, and behind it, are seen; -1 = all
    """

    order: Tensor | None
    cu_seq_q: Tensor
    cu_seq_k: Tensor
    max_q: int
    max_k: int
    window: tuple[int, int]


def varlen_can_run(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether varlen_attn runs here and now, and takes these q, k, v: one half type, on a recent GPU."""
    dim = q.shape[-1]
    return (
        q.dtype in DTYPES
        and all(x.is_cuda and x.dtype == q.dtype and x.shape[-1] == dim and x.numel() > 0 for x in (q, k, v))
        and dim % MULTIPLE_OF_DIM == 0
        and dim <= LARGEST_DIM
        and may_run_here()
        and torch.cuda.get_device_capability(q.device) >= OLDEST_GPU
    )


def varlen_arguments(
    plan: Windows, scope: Scope, batch: int, n: int, m: int, device: torch.device
) -> VarlenArguments | None:
    """The plan for `batch` rows of n queries and m keys, or None where it does not fit.

    It fits where queries and keys have one order, the same for all heads, and every query sees its own key.
    Padding leaves queries without a key of their own, which still see others: it does not fit.
    """
    segment = plan.query_segment
    says_more = plan.log_weight is not None or plan.skip != 0 or plan.key_is_seen is not None
    if says_more or plan.before == 0 or (scope.causal and plan.after != 0):
        return None
    if not _same(segment, plan.key_segment) or not _same(scope.segments, scope.documents_of_keys()):
        return None
    if scope.query_start + n != m or (scope.key_is_real is not None and not scope.key_is_real.all()):
        return None
    before = -1 if plan.before is None else plan.before - 1  # the own key is not counted there
    window = before, -1 if plan.after is None else plan.after
    if segment is None and scope.segments is None:
        cu_seq = torch.arange(batch + 1, dtype=torch.int32, device=device)
        return VarlenArguments(None, cu_seq * n, cu_seq * m, n, m, window)
    if n != m or (segment is not None and (segment.shape[1] != 1 or segment.shape[3:] not in ((), (1,)))):
        return None
    return _in_segments(segment, scope.segments, (batch, n), window, device)


def _same(x: Tensor | None, y: Tensor | None) -> bool:
    """Whether both say the same. What is one tensor need not be read."""
    return x is y or (x is not None and y is not None and torch.equal(x, y))


def _in_segments(
    segment: Tensor | None,
    documents: Tensor | None,
    sizes: tuple[int, int],
    window: tuple[int, int],
    device: torch.device,
) -> VarlenArguments | None:
    """A sequence for every segment of every document of every batch row; sizes: B, N."""
    name = torch.zeros(sizes, dtype=torch.long, device=device)
    if documents is not None:
        name = name + documents
    if segment is not None:
        segment = segment.reshape(-1, sizes[1]).long()  # [B or 1, N]
        name = name * (1 + segment.max().clamp(min=0)) + segment
    name = name + torch.arange(sizes[0], device=device)[:, None] * (1 + name.max().clamp(min=0))
    if segment is not None:
        name = name.masked_fill(segment < 0, -1)  # in none
    named, order = name.flatten().sort(stable=True)
    outside = int((named < 0).sum())  # these come first
    if outside == named.numel():
        return None
    order, named = order[outside:], named[outside:]
    lengths = named.unique_consecutive(return_counts=True)[1]
    moved = outside > 0 or bool((order.diff() < 0).any())
    cu_seq = F.pad(lengths.cumsum(0), (1, 0)).int()
    longest = int(lengths.max())
    return VarlenArguments(order if moved else None, cu_seq, cu_seq, longest, longest, window)


def varlen_window_attend(arguments: VarlenArguments, q: Tensor, k: Tensor, v: Tensor) -> Attended:
    """q [B, H, N, D] over k [B, G, M, D], v [B, G, M, D] by the arguments that `varlen_arguments` found.

    Untested on a GPU. The log-sum-exp is cut off from autograd, since varlen_attn drops its gradient.
    """
    from torch.nn.attention.varlen import AuxRequest, varlen_attn  # a slow import

    batch, heads, n, dim = q.shape
    order, cu_seq_q, cu_seq_k, max_q, max_k, window = arguments
    q, k, v = (_packed(x, order) for x in (q, k, v))  # [T, H or G, D]
    output, lse = varlen_attn(
        q,
        k,
        v,
        cu_seq_q,
        cu_seq_k,
        max_q,
        max_k,
        return_aux=AuxRequest(lse=True),
        scale=default_scale(dim),
        window_size=window,
        enable_gqa=k.shape[1] != heads,
    )
    lse = lse.detach().transpose(0, 1)  # [H, T] whatever the docstring of varlen_attn says, to [T, H]
    if order is not None:  # rows in no sequence see nothing
        output = output.new_zeros(batch * n, *output.shape[1:]).index_copy(0, order, output)
        lse = lse.new_full((batch * n, heads), float("-inf")).index_copy(0, order, lse)
    output, lse = (x.unflatten(0, (batch, n)).transpose(1, 2) for x in (output, lse))
    return Attended(output, lse, "varlen")


def _packed(x: Tensor, order: Tensor | None) -> Tensor:
    """[B, H, N, D] to [T, H, D], rows in the given order."""
    x = x.transpose(1, 2).flatten(0, 1)
    return x if order is None else x.index_select(0, order)
