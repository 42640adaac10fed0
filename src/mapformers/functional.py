"""Attention as functions of q, k, v, without projections."""

from torch import Tensor

from mapformers.core.errors import require
from mapformers.core.mechanism import Mechanism, Shape
from mapformers.core.scope import Scope
from mapformers.core.score import Call, ScoreTerm
from mapformers.kernels.run import run_output
from mapformers.kernels.shares import run_share, shares_of


def attend(
    mechanism: Mechanism,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    key_is_real: Tensor | None = None,
    segments: Tensor | None = None,
    positions: Tensor | None = None,
    score: ScoreTerm | None = None,
) -> Tensor:
    """Output [B, H, N, E] of a mechanism for q [B, H, N, D], k [B, G, M, D], v [B, G, M, E].

    key_is_real [B, M] bool, False = padding; segments [B, N] int, packed documents; positions [B, N] int,
    default the
    rank among the real tokens of the document. G divides H (grouped heads).
    Raises MapformersError for shapes that do not fit and for what the mechanism does not support.
    """
    scope = _prepare(mechanism, q, k, causal, key_is_real, segments, positions)
    check_supports(
        mechanism,
        causal,
        scope,
        cross=q.shape[2] != k.shape[2],
        score=score,
        grouped=q.shape[1] != k.shape[1],
    )
    require(
        v.shape[:3] == k.shape[:3],
        f"{mechanism.card.name}: v must have the batch, heads and length of k, got {tuple(v.shape)} "
        f"and {tuple(k.shape)}; "
        "pass one value for each key",
    )
    plan = mechanism.plan(q, k, scope)
    if score is None:
        return run_output(plan, q, k, v, scope)[0]
    call, _ = score.bind(Call(q, k, q, k, v, (plan,), scope))
    (share,) = shares_of(call, (q.shape[1],), (k.shape[1],))
    return call.finished(run_share(plan, share, call)[0])


def dense_weights(
    mechanism: Mechanism,
    q: Tensor,
    k: Tensor,
    *,
    causal: bool = False,
    key_is_real: Tensor | None = None,
    segments: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """[B, H, N, M] the definition of a mechanism, such that attend(...) = dense_weights(...) @ v.
    Arguments as `attend`.
    """
    scope = _prepare(mechanism, q, k, causal, key_is_real, segments, positions)
    check_supports(mechanism, causal, scope, cross=q.shape[2] != k.shape[2], grouped=q.shape[1] != k.shape[1])
    return mechanism.dense_weights(q, k, scope)


def _prepare(
    mechanism: Mechanism,
    q: Tensor,
    k: Tensor,
    causal: bool,
    key_is_real: Tensor | None,
    segments: Tensor | None,
    positions: Tensor | None,
) -> Scope:
    name = mechanism.card.name
    require(
        q.dim() == 4 and k.dim() == 4 and q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3],
        f"{name}: q and k must be [B, H, N, D] and [B, G, M, D] of equal B and D, got {tuple(q.shape)} and "
        f"{tuple(k.shape)}; add the missing dimensions",
    )
    require(
        k.shape[1] > 0 and q.shape[1] % k.shape[1] == 0,
        f"{name}: key/value heads must divide query heads {q.shape[1]}, got {k.shape[1]}; repeat or "
        "drop heads",
    )
    mechanism.bind(Shape(q.shape[1], k.shape[1], q.shape[3]))
    if q.shape[2] == k.shape[2]:
        scope = Scope.of(causal, key_is_real, segments, positions)
    else:
        scope = Scope(causal, key_is_real, segments, positions=positions, cross=True)
    scope.check(q.shape[0], q.shape[2], k.shape[2])
    return scope


def check_supports(
    mechanism: Mechanism,
    causal: bool,
    scope: Scope | None = None,
    *,
    cross: bool = False,
    rotary: bool = False,
    grouped: bool = False,
    score: ScoreTerm | None = None,
) -> None:
    """Refuse, by name, what the mechanism's card does not claim."""
    card = mechanism.card
    require(
        score is None or not score.needs_map or mechanism.sees_all,
        f"{card.name}: score terms that need the scores of all pairs are not supported, got one; "
        "use full attention",
    )
    mechanism.check_causal(causal)  # first, since it knows why
    if cross:
        mechanism.check_cross()
    wanted = {
        "causal": (causal, "use causal=False or another mechanism"),
        "bidirectional": (not causal, "use causal=True or another mechanism"),
        "padding": (scope is not None and scope.key_is_real is not None, "drop the padding"),
        "segments": (scope is not None and scope.segments is not None, "unpack the documents into rows"),
        "cross": (cross, "queries and keys must be the same tokens"),
        "rotary": (rotary, "use rotary=False and add positions to the input"),
        "grouped": (grouped, "use as many key/value heads as heads"),
        "score": (score is not None, "drop the score term or use a softmax mechanism"),
    }
    for capability, (asked, remedy) in wanted.items():
        require(
            not asked or capability in card.supports,
            f"{card.name}: {capability} is not supported, got it asked for; {remedy}",
        )
