"""Trained layers with other projections: fewer keys and values, or queries and keys that heads share.

Paper    Ainslie et al. 2023, arXiv 2305.13245, section 2.1 (means of heads); Cordonnier, Loukas, Jaggi 2020,
         arXiv 2006.16362, section 3.3 (a trained layer as a collaborative one)
"""

import copy

import torch
from torch import Tensor

from mapformers.attention.multi_head import MultiHeadAttention, bind_mechanisms
from mapformers.attention.result import Ports
from mapformers.core.errors import require
from mapformers.core.mechanism import Mechanism
from mapformers.heads.collaborative import Collaborative, CollaborativeConfig, of_own_columns
from mapformers.heads.projection import GroupedQuery, GroupedQueryConfig, MultiHead, Projection

ROUNDS, ENOUGH = 2000, 1e-10  # of alternating least squares, until the square of the error stands still


def group_heads(layer: MultiHeadAttention, kv_heads: int) -> MultiHeadAttention:
    """A copy whose key/value heads are the means of groups of the layer's heads.

    Exact where the heads of a group are equal; a trained layer is trained on a little afterwards.
    Raises MapformersError for other projections than multi_head and sizes that do not divide.
    """
    before = _plain(layer, "group_heads")
    project = GroupedQuery(GroupedQueryConfig(kv_heads), layer.sizes, torch.Generator())
    project = project.to(before.query.weight)
    with torch.no_grad():
        project.query.weight.copy_(before.query.weight)
        for name in ("key", "value"):
            heads = getattr(before, name).weight.unflatten(0, (kv_heads, -1, layer.sizes.head_dim))
            getattr(project, name).weight.copy_(heads.mean(1).flatten(0, 1))  # [kv_heads D, dim]
    return _with(layer, project)


def collaborate(layer: MultiHeadAttention, width: int = 0) -> MultiHeadAttention:
    """A copy whose heads mix the columns of shared queries and keys.

    width  columns of the shared maps; 0 = heads times head_dim, which is exact. Below it the score matrices
           W_q[h] W_k[h]^T of all heads are factored together by alternating least squares
    Raises MapformersError for other projections than multi_head, and for rotary positions.
    """
    before = _plain(layer, "collaborate")
    require(
        not layer.options.rotary,
        "collaborate: is not possible with rotary positions, got rotary=True; train such a layer anew",
    )
    sizes = layer.sizes
    full = sizes.heads * sizes.head_dim
    width = width or full
    project = Collaborative(CollaborativeConfig(width=width), sizes, torch.Generator())
    project = project.to(before.query.weight)
    maps = [x.weight.detach().double().unflatten(0, (sizes.heads, -1)) for x in (before.query, before.key)]
    with torch.no_grad():
        if width >= full:
            query, key = (torch.cat([x.flatten(0, 1), x.new_zeros(width - full, sizes.dim)]) for x in maps)
            mixing = of_own_columns(sizes.heads, full).to(key)
            mixing = torch.cat([mixing, mixing.new_zeros(sizes.heads, width - full)], 1)
        else:
            query, key, mixing = _factored(maps[0], maps[1], width)
        # The scores of a collaborative head are divided by the root of width / heads.
        query = query * (width / full) ** 0.5
        for to, found in ((project.query.weight, query), (project.key.weight, key), (project.mixing, mixing)):
            to.copy_(found)
        project.value.weight.copy_(before.value.weight)
    return _with(layer, project)


def _factored(query: Tensor, key: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """A [width, dim], B [width, dim], m [H, width] with query[h]^T key[h] close to A^T diag(m[h]) B."""
    heads = query.shape[0]
    target = query.mT @ key  # [H, dim, dim]
    # Start: the strongest directions of each head, dealt out in turn.
    u, s, v = torch.linalg.svd(target)
    per_head = -(-width // heads)
    a = (u[:, :, :per_head] * s[:, None, :per_head].sqrt()).permute(2, 0, 1).flatten(0, 1)[:width]
    b = (v[:, :per_head] * s[:, :per_head, None].sqrt()).permute(1, 0, 2).flatten(0, 1)[:width]
    mixing = torch.eye(heads, dtype=query.dtype).repeat(1, per_head)[:, :width]
    error = float("inf")
    for turn in range(ROUNDS):
        mixing = _solve((a @ a.T) * (b @ b.T), torch.einsum("hij,wi,wj->hw", target, a, b))
        a = _solve((b @ b.T) * (mixing.T @ mixing), torch.einsum("hij,hw,wj->iw", target, mixing, b)).T
        b = _solve((a @ a.T) * (mixing.T @ mixing), torch.einsum("hij,hw,wi->jw", target, mixing, a)).T
        if turn % 10 == 0:
            before, error = (
                error,
                float((torch.einsum("hw,wi,wj->hij", mixing, a, b) - target).square().sum()),
            )
            if before - error <= ENOUGH * error:
                break
    return a, b, mixing


def _solve(gram: Tensor, right: Tensor) -> Tensor:
    """x with x gram = right, gram [w, w] symmetric and perhaps singular."""
    return right @ torch.linalg.pinv(gram, hermitian=True)


def _plain(layer: MultiHeadAttention, what: str) -> MultiHead:
    require(
        isinstance(layer.project, MultiHead),
        f"{what}: projection must be multi_head, got {layer.project.card.name}; convert such a layer",
    )
    assert isinstance(layer.project, MultiHead)
    return layer.project


def _with(layer: MultiHeadAttention, project: Projection) -> MultiHeadAttention:
    """A copy of the layer with this projection; its mechanisms are made anew where their sizes change."""
    copied = copy.deepcopy(layer)
    generator = torch.Generator().manual_seed(0)
    fresh: list[tuple[Mechanism, int]] = [
        (type(mechanism)(mechanism.config), share)
        for mechanism, share in zip(copied.parts(), copied.shares, strict=True)
    ]
    bound = bind_mechanisms(fresh, copied.sizes, project, generator)
    for (mechanism, _), old in zip(bound, copied.parts(), strict=True):
        state, known = mechanism.state_dict(), old.state_dict()
        fits = all(name in known and known[name].shape == x.shape for name, x in state.items())
        require(
            fits,
            f"convert: {mechanism.card.name} has learned tensors of another size, got a change of heads; "
            "use a mechanism without any",
        )
        mechanism.load_state_dict(known)
    ports = Ports(project, copied.merge, copied.score, tuple(copied.head_losses()))
    made = MultiHeadAttention(copied.sizes, bound, ports, copied.options)
    return made.train(layer.training)
