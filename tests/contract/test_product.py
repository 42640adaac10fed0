"""The product: every score term on every mechanism that takes them equals the dense reference, or refuses.

The reference makes all scores: what a term makes of q and k, what it adds to every pair and what it makes of
the outputs, on the weights of the mechanism's own definition. What a single term computes is proven in
tests/priors and tests/heads; here it is that patterns, kernels and states leave it as it is.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.catalog import SCORES
from mapformers.core.carry import Carry
from mapformers.core.errors import MapformersError
from mapformers.core.mechanism import Mechanism
from mapformers.core.plans import Dense, Plan, Union, WeightedSum
from mapformers.core.scope import Scope
from mapformers.core.score import Call, Pairs, ScoreTerm
from tests.contract import cases
from tests.contract.ports import SCORE_SPECS
from tests.tolerances import assert_close

N = 33
SCORED = [(t, c) for t, c in cases.with_directions() if cases.supports(t, "score") and "paper" not in t]
TERMS = [text for texts in SCORE_SPECS.values() for text in texts]
COMPOSED = (
    "alibi + talking_heads",
    "realformer + talking_heads + shaw(limit=4)",
    "synthesizer(kind=random, limit=40, mix=true) + talking_heads(mix=after) + alibi",
)


def made(text: str, causal: bool, generator: torch.Generator) -> ScoreTerm:
    term = mf.score(text, cases.HEADS, cases.HEAD_DIM, causal=causal).double()
    with torch.no_grad():
        for parameter in term.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    term.after_step()
    return term


def null_keys(plan: Plan) -> Iterator[Tensor]:
    """The plan's own keys."""
    if isinstance(plan, Union | WeightedSum):
        for part in plan.parts:
            yield from null_keys(part)
    elif isinstance(plan, Dense) and plan.keys is not None:
        yield plan.keys


def bias_of(term: ScoreTerm | None, scope: Scope, sizes: tuple[int, ...]) -> Tensor:
    """[B, H, N, M] the term as a matrix."""
    if term is None:
        return torch.zeros(1, dtype=torch.float64)
    batch, heads, n, m = sizes
    rows = torch.arange(n)
    return term.tile(
        Pairs(
            batch=torch.arange(batch).view(-1, 1, 1, 1),
            head=torch.arange(heads).view(1, -1, 1, 1),
            query=scope.query_positions(n, rows.device)[:, None, :, None],
            key=scope.positions_of_keys(m, rows.device)[:, None, None, :],
            query_row=rows[:, None],
            key_row=torch.arange(m),
        )
    ).double()


def reference(weights: Tensor, call: Call, last_resort: bool = False) -> Tensor:
    """Weights of a definition whose scores are q . k, moved to the scores of the call, and its outputs.

    last_resort: the own key is there for rows that see nothing else, with a weight too small to be written.
    """
    sizes = (*call.plain_q.shape[:3], call.k.shape[2])
    plain = call.plain_q @ call.plain_k.mT / call.plain_q.shape[-1] ** 0.5
    scores = call.q @ call.k.mT / call.q.shape[-1] ** 0.5 + bias_of(call.bias, call.scope, sizes)
    null = (1 - weights.sum(-1, keepdim=True)).clamp(min=0)
    null = torch.where(null < 1e-12, 0.0, null)
    seen = (weights > 0).any(-1, keepdim=True)
    for keys in null_keys(call.plans[0]):  # of value zero
        moved = keys
        for widen in call.own_keys:
            moved = widen(moved, 0)
        before = (call.plain_q * keys).sum(-1, keepdim=True) / keys.shape[-1] ** 0.5
        after = (call.q * moved).sum(-1, keepdim=True) / moved.shape[-1] ** 0.5
        null = null * (after - before).exp()
    raised = weights * (scores - plain).exp()
    if last_resort:
        own = call.scope.visible(*sizes[2:], raised.device) & torch.eye(sizes[2], dtype=torch.bool)
        raised = torch.where(raised.sum(-1, keepdim=True) > 0, raised, own.double())
    total = raised.sum(-1, keepdim=True) + torch.where(seen, null, 1.0)
    return call.finished(raised / torch.where(total > 0, total, 1.0) @ call.v)


@pytest.mark.slow
@pytest.mark.parametrize(("mechanism", "causal"), SCORED)
def test_terms_on_mechanisms(mechanism: str, causal: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    pattern = cases.bound(mechanism, generator)
    with torch.no_grad():  # the null key of routing starts at zero, which no mixing moves
        for parameter in pattern.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    for text in (*TERMS, *COMPOSED):
        term = made(text, causal, generator)
        if term.needs_map and not pattern.sees_all:
            q, k, v = cases.draw_qkv(N, generator)
            with pytest.raises(MapformersError, match="full attention"):
                mf.attend(pattern, q, k, v, causal=causal, score=term)
            continue
        for kind in ("plain", "packed"):
            equals_the_reference(pattern, term, causal, kind, f"{mechanism}, {text}, {kind}")


def equals_the_reference(pattern: Mechanism, term: ScoreTerm, causal: bool, kind: str, what: str) -> None:
    """Outputs and gradients of a term on a mechanism."""
    generator = torch.Generator().manual_seed(2)
    q, k, v = (x.requires_grad_() for x in cases.draw_qkv(N, generator))
    k = cases.share(what, q, k)
    arguments = cases.scope_arguments(kind, N, generator)
    fast = mf.attend(pattern, q, k, v, causal=causal, score=term, **arguments)
    scope = Scope.of(causal, **arguments)
    call = Call(q, k, q, k, v, (pattern.plan(q, k, scope),), scope)
    weights = mf.dense_weights(pattern, q, k, causal=causal, **arguments)
    slow = reference(weights, term.bind(call)[0], last_resort=pattern.card.name == "reformer")
    assert_close(fast, slow, "parity", what)
    leaves = [q, v, *(p for p in term.parameters() if p.requires_grad)]
    direction = torch.randn(fast.shape, generator=generator, dtype=fast.dtype)
    for a, b in zip(gradients(fast, leaves, direction), gradients(slow, leaves, direction), strict=True):
        assert_close(a, b, "gradient", what)


def gradients(output: Tensor, leaves: list[Tensor], direction: Tensor) -> list[Tensor]:
    found = torch.autograd.grad((output * direction).sum(), leaves, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if x is None else x for leaf, x in zip(leaves, found, strict=True)]


def test_every_term_has_a_spec() -> None:
    assert list(SCORE_SPECS) == [entry.card.name for entry in SCORES]  # type: ignore[attr-defined]


MIXTURES = (
    "full",
    "band(window=5)",
    "routing(clusters=3, window=4)",
    "band(window=5):2 + routing(clusters=3, window=4):2",
)


NEED_MAPS = ("evolving", "form=scores")
DECODED = [  # the mixture holds the others, but for what needs full attention
    pytest.param(mechanism, text, marks=() if needs_map or mechanism == MIXTURES[-1] else pytest.mark.slow)
    for mechanism in MIXTURES
    for text in (*TERMS, *COMPOSED)
    if not (needs_map := any(name in text for name in NEED_MAPS)) or mechanism == "full"
]


@pytest.mark.parametrize("text", [text for text in TERMS if any(name in text for name in NEED_MAPS)])
@pytest.mark.parametrize("mechanism", MIXTURES[1:])
def test_maps_need_full_attention(mechanism: str, text: str) -> None:
    with pytest.raises(MapformersError, match="use full attention"):
        mf.attention(mechanism, cases.DIM, cases.HEADS, causal=True, score=text)


@pytest.mark.parametrize(("mechanism", "text"), DECODED)
def test_decoding_and_padding(mechanism: str, text: str) -> None:
    """Token by token and in chunks, with padding in between: as the parallel form without it."""
    generator = torch.Generator().manual_seed(2)
    term = made(text, True, generator)
    layer = cases.layer(mechanism, generator, causal=True, score=term)
    n = 19
    x = cases.draw((2, n, cases.DIM), generator)
    real = torch.ones(2, n, dtype=torch.bool)
    real[0, :3], real[1, 5], real[1, 17:] = False, False, False
    expected = layer(x, key_is_real=real)
    other = torch.where(real.unsqueeze(-1), x, 7.0)
    assert_close(layer(other, key_is_real=real)[real], expected[real], "rounding", "content of padding")
    assert_close(layer(x[1:, real[1]]), expected[1:, real[1]], "rounding", "without padding")
    for sizes in ((1,) * n, (5, 1, 9, 4)):
        state, outputs, start = layer.init_state(2), [], 0
        for size in sizes:
            rows = slice(start, start + size)
            y, state = layer.step(x[:, rows], state, key_is_real=real[:, rows])
            outputs.append(y)
            start += size
        assert_close(
            torch.cat(outputs, 1)[real], expected[real], "decode", f"{mechanism}, {text}, {sizes[0]}"
        )


def normalised(x: Tensor) -> Tensor:
    """As in a block: without it some terms grow as a power of the layer, and rounding with them."""
    return x / x.square().mean(-1, keepdim=True).sqrt()


@pytest.mark.slow
@pytest.mark.parametrize(("mechanism", "text"), DECODED)
def test_no_later_token_counts(mechanism: str, text: str) -> None:
    """Neither through one layer nor through what a layer leaves for the next."""
    generator = torch.Generator().manual_seed(3)
    layers = [
        cases.layer(mechanism, generator, causal=True, score=made(text, True, generator)) for _ in range(3)
    ]
    x = cases.draw((2, 21, cases.DIM), generator).requires_grad_()
    y, carry = x, None
    for layer in layers:
        result = layer.attend(normalised(y), carry)
        y, carry = y + result.output, result.carry
    changed = x.detach().clone()
    changed[:, 13:] = cases.draw((2, 8, cases.DIM), generator)
    z, carry = changed, None
    for layer in layers:
        result = layer.attend(normalised(z), carry)
        z, carry = z + result.output, result.carry
    assert_close(z[:, :13], y[:, :13], "rounding", f"{mechanism}, {text}")
    (gradient,) = torch.autograd.grad(y[:, :13].square().sum(), x)
    assert not gradient[:, 13:].any()
    states = [layer.init_state(2) for layer in layers]
    for t in range(21):
        step, carry = x[:, t : t + 1], None
        for i, layer in enumerate(layers):
            result, states[i] = layer.advance(normalised(step), carry or Carry(), states[i])
            step, carry = step + result.output, result.carry
        assert_close(step, y[:, t : t + 1], "decode", f"{mechanism}, {text}, token {t}")
