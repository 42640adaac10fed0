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
    values = expand_heads(v, heads).to(phi_k.dtype)
    if scope.segments is not None:
        attended = _by_document(phi_q, phi_k, values, scope)
    elif scope.causal:
        attended = causal_features(phi_q, phi_k, values)
    else:
        attended = _normalise(phi_q @ key_sums(phi_k, values))
    return Attended(attended.output.to(v.dtype), attended.lse)


def key_sums(phi_k: Tensor, values: Tensor) -> Tensor:
    """sum_j phi_k[j] [values[j], 1], [.., F, E + 1]: numerator and denominator in one product."""
    return phi_k.transpose(-1, -2) @ _with_ones(values)


def causal_features(phi_q: Tensor, phi_k: Tensor, values: Tensor, carried: Tensor | None = None) -> Attended:
    """Each query over the keys at or before it, and over those whose sums are carried in. All [B, H, N, ..].

    Stretches of whole chunks hand on their sums; the backward computes each stretch again, so that what is
    alive at a time stays small enough for the cache, whatever N.
    """
    if carried is None:
        carried = phi_k.new_zeros(*phi_k.shape[:2], phi_k.shape[-1], values.shape[-1] + 1)  # [B, H, F, E + 1]
    outputs, lses = [], []
    for q, k, v in zip(*(x.split(STRETCH, 2) for x in (phi_q, phi_k, values)), strict=True):
        output, lse, carried = checkpoint(
            _stretch, q, k, v, carried, use_reentrant=False, preserve_rng_state=False
        )
        outputs.append(output)
        lses.append(lse)
    return Attended(torch.cat(outputs, 2), torch.cat(lses, 2))


def _stretch(phi_q: Tensor, phi_k: Tensor, values: Tensor, carried: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output and lse of one stretch, chunk by chunk on top of the carried sums, and what it carries on."""
    n = phi_q.shape[2]
    pad = -n % CHUNK
    phi_q, phi_k, values = (
        F.pad(x, (0, 0, 0, pad)).unflatten(2, (-1, CHUNK)) for x in (phi_q, phi_k, _with_ones(values))
    )
    inner = (phi_q @ phi_k.transpose(-1, -2)).tril() @ values  # [B, H, chunks, CHUNK, E + 1]
    sums = torch.cat([carried.unsqueeze(2), phi_k.transpose(-1, -2) @ values], 2).cumsum(2)
    attended = _normalise((inner + phi_q @ sums[:, :, :-1]).flatten(2, 3)[:, :, :n])
    return attended.output, attended.lse, sums[:, :, -1]


def _with_ones(v: Tensor) -> Tensor:
    """[.., E] to [.., E + 1]: a column of ones beside the values."""
    return F.pad(v, (0, 1), value=1.0)


def _normalise(summed: Tensor) -> Attended:
    """Numerator and denominator, [.., E + 1], to the weighted mean and its log-denominator."""
    total = summed[..., -1]
    seen = total > 0
    total = torch.where(seen, total, 1.0)
    output = summed[..., :-1] * total.reciprocal().unsqueeze(-1)  # 0 where nothing was seen
    return Attended(output, total.log().masked_fill(~seen, float("-inf")))


def _by_document(phi_q: Tensor, phi_k: Tensor, values: Tensor, scope: Scope) -> Attended:
    """Packed documents, each on its own: the work is the same as for the whole, whatever their number."""
    documents = scope.documents_of_keys()
    assert scope.segments is not None
    assert documents is not None
    outputs, lses = [], []
    for b in range(phi_q.shape[0]):
        output = phi_q.new_zeros(phi_q.shape[1], phi_q.shape[2], values.shape[-1])
        lse = phi_q.new_full(phi_q.shape[1:3], float("-inf"))
        query_document, key_document = (x[min(b, x.shape[0] - 1)] for x in (scope.segments, documents))
        for document in query_document.unique().tolist():
            queries, keys = ((x == document).nonzero().squeeze(-1) for x in (query_document, key_document))
            q, k, v = phi_q[b : b + 1, :, queries], phi_k[b : b + 1, :, keys], values[b : b + 1, :, keys]
            part = causal_features(q, k, v) if scope.causal else _normalise(q @ key_sums(k, v))
            output = output.index_copy(1, queries, part.output[0])
            lse = lse.index_copy(1, queries, part.lse[0])
        outputs.append(output)
        lses.append(lse)
    return Attended(torch.stack(outputs), torch.stack(lses))
