"""The Features plan: kernel feature maps, chunked in training, sums of constant size in decoding."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mapformers.core.attended import Attended
from mapformers.core.plans import Features
from mapformers.core.scope import Scope
from mapformers.kernels.softmax import at_least_float32, expand_heads

CHUNK = 64


def feature_attend(plan: Features, v: Tensor, scope: Scope) -> Attended:
    """sum_j phi_q[i].phi_k[j] v[j] / sum_j phi_q[i].phi_k[j], v [B, G, M, E]. lse = log of the
    denominator.
    """
    heads = plan.phi_q.shape[1]
    phi_q, phi_k = at_least_float32(plan.phi_q), at_least_float32(expand_heads(plan.phi_k, heads))
    if scope.key_is_real is not None:
        phi_k = phi_k * scope.key_is_real[:, None, :, None]
    values = with_ones(expand_heads(v, heads).to(phi_k.dtype))  # [B, H, M, E + 1]
    if scope.segments is not None:
        summed = _by_document(phi_q, phi_k, values, scope)
    elif scope.causal:
        summed = causal_sums(phi_q, phi_k, values)
    else:
        summed = phi_q @ (phi_k.transpose(-1, -2) @ values)
    return normalise(summed, v.dtype)


def with_ones(v: Tensor) -> Tensor:
    """[.., E] to [.., E + 1]: a column of ones, so that numerator and denominator are one product."""
    return F.pad(v, (0, 1), value=1.0)


def normalise(summed: Tensor, dtype: torch.dtype) -> Attended:
    """Numerator and denominator, [.., E + 1], to the weighted mean and its log-denominator."""
    total = summed[..., -1]
    seen = total > 0
    total = torch.where(seen, total, 1.0)
    output = summed[..., :-1] / total.unsqueeze(-1) * seen.unsqueeze(-1)
    return Attended(output.to(dtype), total.log().masked_fill(~seen, float("-inf")))


def causal_sums(phi_q: Tensor, phi_k: Tensor, values: Tensor) -> Tensor:
    """sum over j <= i of phi_q[i].phi_k[j] values[j], chunk by chunk. All [B, H, N, ..]."""
    n = phi_q.shape[2]
    pad = -n % CHUNK
    phi_q, phi_k, values = (
        F.pad(x, (0, 0, 0, pad)).unflatten(2, (-1, CHUNK)) for x in (phi_q, phi_k, values)
    )
    inner = (phi_q @ phi_k.transpose(-1, -2)).tril() @ values  # [B, H, chunks, CHUNK, E + 1]
    sums = phi_k.transpose(-1, -2) @ values  # [B, H, chunks, F, E + 1]
    earlier = F.pad(sums.cumsum(2)[:, :, :-1], (0, 0, 0, 0, 1, 0))
    return (inner + phi_q @ earlier).flatten(2, 3)[:, :, :n]


def _by_document(phi_q: Tensor, phi_k: Tensor, values: Tensor, scope: Scope) -> Tensor:
    """Packed documents, each on its own: the work is the same as for the whole, whatever their number."""
    documents = scope.documents_of_keys()
    assert scope.segments is not None
    assert documents is not None
    rows = []
    for b in range(phi_q.shape[0]):
        row = phi_q.new_zeros(phi_q.shape[1], phi_q.shape[2], values.shape[-1])
        query_document, key_document = (x[min(b, x.shape[0] - 1)] for x in (scope.segments, documents))
        for document in query_document.unique().tolist():
            queries, keys = ((x == document).nonzero().squeeze(-1) for x in (query_document, key_document))
            q, k, v = phi_q[b : b + 1, :, queries], phi_k[b : b + 1, :, keys], values[b : b + 1, :, keys]
            part = causal_sums(q, k, v) if scope.causal else q @ (k.transpose(-1, -2) @ v)
            row = row.index_copy(1, queries, part[0])
        rows.append(row)
    return torch.stack(rows)
