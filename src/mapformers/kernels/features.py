"""The Features plan: kernel feature maps, chunked in training, sums of constant size in decoding."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mapformers.core.attended import Attended
from mapformers.core.errors import require
from mapformers.core.plans import Features
from mapformers.core.scope import Scope
from mapformers.kernels.exponential import Exponential
from mapformers.kernels.feature_sums import Keys, Summed, Sums, causal_feature_sums
from mapformers.kernels.softmax import at_least_float32, expand_heads

WIDEST = 60.0  # exp of it, squared, is still a float32


def feature_attend(plan: Features, v: Tensor, scope: Scope) -> Attended:
    """Output and log-denominator of the plan, v [B, G, M, E]."""
    phi_q = at_least_float32(plan.phi_q)
    earlier = scope.query_start if scope.causal and scope.segments is None else 0
    if earlier:  # the scan takes one query for each key
        phi_q = F.pad(phi_q, (0, 0, earlier, 0))
    keys = keys_of(plan, v, scope.key_is_real)
    require(
        scope.causal or plan.log_decay is None,
        "features: decay needs causal=True, got causal=False; leave out the gate",
    )
    if scope.segments is not None:
        attended = _by_document(phi_q, keys, scope, plan.floor)
    elif scope.causal:
        attended, _ = causal_features(phi_q, keys, plan.floor)
    else:
        attended = _over_all(phi_q, keys, plan.floor)
    return Attended(attended.output[:, :, earlier:].to(v.dtype), attended.lse[:, :, earlier:])


def keys_of(plan: Features, v: Tensor, is_real: Tensor | None = None) -> Keys:
    """The keys of a plan with one head for each query head, hidden where they are padding.

    Their values have a column of ones, which sums up to the denominator.
    """
    heads = plan.phi_q.shape[1]
    phi = at_least_float32(expand_heads(plan.phi_k, heads))
    weight, decay = (
        None if x is None else at_least_float32(expand_heads(x.unsqueeze(-1), heads).squeeze(-1))
        for x in (plan.log_weight_k, plan.log_decay)
    )
    values = F.pad(expand_heads(v, heads).to(phi.dtype), (0, 1), value=1.0)  # [B, H, M, E + 1]
    if is_real is not None:
        values = values * is_real[:, None, :, None]
        weight = None if weight is None else weight.masked_fill(~is_real[:, None], float("-inf"))
        decay = None if decay is None else decay.masked_fill(~is_real[:, None], 0.0)
    exponents = None if plan.exponents is None else plan.exponents.to(phi.dtype)
    return Keys(phi, values, weight, decay, exponents)


def causal_features(
    phi_q: Tensor, keys: Keys, floor: float = 0.0, carried: Sums | None = None
) -> tuple[Attended, Sums]:
    """Each query over the keys at or before it, and over those whose sums are carried in and on."""
    summed = causal_feature_sums(phi_q, keys, Sums.empty(keys) if carried is None else carried)
    return _normalise(summed, floor), summed.carried


def _over_all(phi_q: Tensor, keys: Keys, floor: float) -> Attended:
    """Every query over all keys."""
    phi, values, weight, _, exponents = keys
    level = None
    if exponents is not None:
        phi_q, _ = Exponential.apply(phi_q, exponents)
        phi, height = Exponential.apply(phi, exponents)
        weight = height if weight is None else weight + height
    if weight is not None:
        level = weight.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(weight.dtype).min)
        phi = phi * (weight - level).exp().unsqueeze(-1)
    sums = phi.transpose(-1, -2) @ values  # [B, H, F, E + 1]
    return _normalise(Summed(phi_q @ sums, level, Sums(sums, sums.new_zeros(()))), floor)


def _normalise(summed: Summed, floor: float) -> Attended:
    """Numerator and denominator, [.., E + 1], to the weighted mean and its log-denominator."""
    y, level = summed.y, summed.level
    total = y[..., -1]
    if floor:
        lowest = y.new_tensor(floor) if level is None else floor * (-level).clamp(max=WIDEST).exp()
        total = torch.maximum(total, lowest)
    seen = total >= torch.finfo(total.dtype).tiny  # below it, gradients of the quotient overflow
    total = torch.where(seen, total, 1.0)
    output = y[..., :-1] / total.unsqueeze(-1)  # 0 where nothing was seen
    lse = total.log().masked_fill(~seen, float("-inf"))
    return Attended(output, lse if level is None else lse + level)


def _by_document(phi_q: Tensor, keys: Keys, scope: Scope, floor: float) -> Attended:
    """Packed documents, each on its own: the work is the same as for the whole, whatever their number."""
    documents = scope.documents_of_keys()
    assert scope.segments is not None
    assert documents is not None
    outputs, lses = [], []
    for b in range(phi_q.shape[0]):
        output = phi_q.new_zeros(phi_q.shape[1], phi_q.shape[2], keys.values.shape[-1] - 1)
        lse = phi_q.new_full(phi_q.shape[1:3], float("-inf"))
        query_document, key_document = (x[min(b, x.shape[0] - 1)] for x in (scope.segments, documents))
        for document in query_document.unique().tolist():
            queries, members = ((x == document).nonzero().squeeze(-1) for x in (query_document, key_document))
            q = phi_q[b : b + 1, :, queries]
            part = keys.of(b, members)
            attended = causal_features(q, part, floor)[0] if scope.causal else _over_all(q, part, floor)
            output = output.index_copy(1, queries, attended.output[0])
            lse = lse.index_copy(1, queries, attended.lse[0])
        outputs.append(output)
        lses.append(lse)
    return Attended(torch.stack(outputs), torch.stack(lses))
