"""The Features plan: kernel feature maps, chunked in training, sums of constant size in decoding."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mapformers.core.attended import Attended
from mapformers.core.plans import Features
from mapformers.core.scope import Scope
from mapformers.kernels.softmax import at_least_float32, expand_heads

CHUNK = 64
STRETCH = 16 * CHUNK


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
    output = summed[..., :-1] * total.reciprocal().unsqueeze(-1)  # 0 where nothing was seen
    return Attended(output.to(dtype), total.log().masked_fill(~seen, float("-inf")))


def causal_sums(phi_q: Tensor, phi_k: Tensor, values: Tensor) -> Tensor:
    """sum over j <= i of phi_q[i].phi_k[j] values[j]. All [B, H, N, ..].

    Stretches of whole chunks hand on their sums; the backward computes each stretch again, so that what is
    alive at a time stays small enough for the cache, whatever N.
    """
    carried = phi_k.new_zeros(*phi_k.shape[:2], phi_k.shape[-1], values.shape[-1])  # [B, H, F, E + 1]
    rows = []
    for q, k, v in zip(*(x.split(STRETCH, 2) for x in (phi_q, phi_k, values)), strict=True):
        row, carried = checkpoint(_stretch, q, k, v, carried, use_reentrant=False, preserve_rng_state=False)
        rows.append(row)
    return torch.cat(rows, 2)


def _stretch(phi_q: Tensor, phi_k: Tensor, values: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of one stretch, chunk by chunk, on top of those carried into it, and what it carries on."""
    n = phi_q.shape[2]
    pad = -n % CHUNK
    phi_q, phi_k, values = (
        F.pad(x, (0, 0, 0, pad)).unflatten(2, (-1, CHUNK)) for x in (phi_q, phi_k, values)
    )
    inner = (phi_q @ phi_k.transpose(-1, -2)).tril() @ values  # [B, H, chunks, CHUNK, E + 1]
    sums = torch.cat([carried.unsqueeze(2), phi_k.transpose(-1, -2) @ values], 2).cumsum(2)
    return (inner + phi_q @ sums[:, :, :-1]).flatten(2, 3)[:, :, :n], sums[:, :, -1]


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
