"""Plans fitted to what score terms made of a call."""

from dataclasses import replace

from mapformers.core.errors import require
from mapformers.core.plans import Dense, Plan, Union, WeightedSum, Windows
from mapformers.core.score import Call


def fitted(plan: Plan, call: Call, first: int = 0) -> Plan:
    """The plan of a mechanism whose heads are those of the call from `first` on.

    Raises MapformersError where a term widens the keys and the plan cannot follow.
    """
    if call.own_keys:
        plan = _with_wide_keys(plan, call, first)
    return _within_reach(plan, call)


def _within_reach(plan: Plan, call: Call) -> Plan:
    """Without keys that the bias hides anyway, where the plan counts steps as the bias counts positions.

    Full attention becomes a band; a band becomes shorter, and so does what decoding keeps.
    """
    reach = None if call.bias is None else call.bias.reach()
    if reach is None or not call.scope.counts_positions or call.q.shape[2] != call.k.shape[2]:
        return plan
    ahead = reach + 1  # padding before the first token of a document has its position, and is a step farther
    if plan == Dense():
        return Windows(before=reach + 1, after=0 if call.scope.causal else ahead)
    if isinstance(plan, Windows) and plan.query_segment is None and plan.key_segment is None:
        before = reach + 1 if plan.before is None else min(plan.before, reach + 1)
        after = ahead if plan.after is None else min(plan.after, ahead)
        return replace(plan, before=before, after=after)
    return plan


def _with_wide_keys(plan: Plan, call: Call, first: int) -> Plan:
    """The plan's own keys as wide as those of the call."""
    if isinstance(plan, Union | WeightedSum):
        return replace(plan, parts=tuple(_with_wide_keys(part, call, first) for part in plan.parts))
    if not isinstance(plan, Dense) or (plan.keys is None and plan.maps is None):
        return plan
    require(
        plan.keys is not None and plan.values is None and plan.value_mix is None and plan.maps is None,
        "score: a term that mixes or joins keys needs a mechanism that attends to the keys as they are, "
        "got new keys; use another mechanism",
    )
    keys = plan.keys
    assert keys is not None
    for widen in call.own_keys:
        keys = widen(keys, first)
    return replace(plan, keys=keys)
