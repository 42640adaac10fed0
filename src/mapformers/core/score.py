"""Score terms: what is added to the scores before the mask and the softmax, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

from torch import Tensor, nn

from mapformers.core.card import Card
from mapformers.core.carry import Carry
from mapformers.core.errors import require
from mapformers.core.plans import Plan
from mapformers.core.scope import Scope


@dataclass(frozen=True)
class ScoreSite:
    """What a term is made for: H heads with queries of size `head_dim`, in a causal layer or not."""

    heads: int
    head_dim: int
    causal: bool = False


@dataclass(frozen=True)
class Pairs:
    """Index tensors of a tile of scores; all broadcast to the shape of the tile.

    batch, head            index of the batch row and of the head
    query, key             true positions, whatever the order of the tile
    query_row              row of the call's q, negative in a place that holds none
    key_row                row of the call's k; None in decoding over rings, which keep no rows
    """

    batch: Tensor
    head: Tensor
    query: Tensor
    key: Tensor
    query_row: Tensor | None = None
    key_row: Tensor | None = None


class Memory(Protocol):
    """What a term keeps from one decode step to the next."""

    def reorder(self, index: Tensor) -> None:
        """Batch rows in another order."""


@dataclass(frozen=True)
class Call:
    """One call of a layer, or one decode step, as score terms see and change it.

    plain_q, plain_k  [B, H, N, D], [B, G, M, D] before rotation
    q, k, v           [B, H, N, F], [B, 1 | G | H, M, F], [B, 1 | G | H, M, E]: what kernels get. The scores
                      are q . k / sqrt(F), to which `bias` is added, pair by pair
    plans             who sees whom, the shares of the heads one after another
    scope             of the call; in a decode step of the new tokens
    carry             from the layer below, and for the layer above
    bias              None = nothing is added
    own_keys          what a plan's own keys become: from [B, h, K, D] of some heads, whose first is given, to
                      [B, h, K, F], or one after another
    log_scale         None = weights are a softmax. Otherwise they are exp(score + log_scale) as they are
    finish            what turns outputs [B, H, N, E] into those of the heads, in this order
    """

    plain_q: Tensor
    plain_k: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    plans: tuple[Plan, ...]
    scope: Scope
    carry: Carry = field(default_factory=Carry)
    bias: ScoreTerm | None = None
    own_keys: tuple[Callable[[Tensor, int], Tensor], ...] = ()
    log_scale: float | None = None
    finish: tuple[Callable[[Tensor], Tensor], ...] = ()

    def add(self, term: ScoreTerm) -> Call:
        """With one more bias."""
        return replace(self, bias=term if self.bias is None else SumOfTerms([self.bias, term]))

    def finished(self, heads: Tensor) -> Tensor:
        """Outputs of kernels [B, H, N, E] as those of the heads."""
        for finish in self.finish:
            heads = finish(heads)
        return heads

    def without_scores(self) -> Call:
        """Without q . k: the bias alone remains."""
        q = self.q.new_zeros(*self.q.shape[:3], 1)
        k = self.k.new_zeros(self.k.shape[0], 1, self.k.shape[2], 1)
        return replace(self, q=q, k=k, own_keys=(lambda keys, first: keys.new_zeros(*keys.shape[:3], 1),))


class ScoreTerm(nn.Module):
    """Pointwise in (batch, head, query, key): works in every softmax kernel, tile by tile.

    A catalogued term is made as Term(config, site, generator). One that needs more than the indices of a pair
    defines `bind`.
    """

    card: ClassVar[Card]
    Config: ClassVar[type]
    loss_names: ClassVar[tuple[str, ...]] = ()  # what `losses` returns

    replaces_scores: bool = False  # q . k does not count
    changes_scores: bool = False  # mixes q . k of heads or layers
    carries: bool = False  # reads what the layer below left on the carry
    needs_map: bool = False  # makes the scores of all pairs: full attention only

    def bind(self, call: Call, memory: Memory | None = None) -> tuple[Call, Memory | None]:
        """The call as this term changes it, and what it wants to find in the next decode step.

        memory is what it returned in the step before; None before the first token.
        """
        return (call.without_scores() if self.replaces_scores else call).add(self), None

    def tile(self, pairs: Pairs) -> Tensor:
        """What to add to the scaled scores of these pairs; broadcastable to the tile, differentiable."""
        raise NotImplementedError(f"{type(self).__name__} must define tile(pairs)")

    def by_distance(self, head: Tensor, distance: Tensor) -> Tensor | None:
        """The term as a function of head and distance (query minus key position); None if it is not one."""
        return None

    def reach(self) -> int | None:
        """The largest distance between a query and a key that it sees; None = all are seen.

        Farther keys have -inf in `tile`, so that a plan may leave them out.
        """
        return None

    def losses(self) -> dict[str, Tensor]:
        """Auxiliary losses by name, unweighted scalars. In training only."""
        return {}

    def after_step(self) -> None:
        """Bring parameters back into their range. Called after the optimiser step."""


class DistanceTerm(ScoreTerm):
    """A term that depends on the head and on the distance alone: kernels may look it up in a table."""

    def at(self, head: Tensor, distance: Tensor) -> Tensor:
        """What to add at these distances, query minus key position; broadcasts, differentiable."""
        raise NotImplementedError(f"{type(self).__name__} must define at(head, distance)")

    def tile(self, pairs: Pairs) -> Tensor:
        """By the true positions of the pairs."""
        return self.at(pairs.head, pairs.query - pairs.key)

    def by_distance(self, head: Tensor, distance: Tensor) -> Tensor | None:
        """As `at`."""
        return self.at(head, distance)


class SumOfTerms(ScoreTerm):
    """Several score terms, added."""

    def __init__(self, terms: list[ScoreTerm]) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)
        replacing = [term for term in terms if term.replaces_scores]
        others = [term for term in terms if term.replaces_scores or term.changes_scores]
        require(
            not replacing or len(others) == 1,
            f"score: {' and '.join(term.card.name for term in others)} exclude each other, got all of them; "
            f"{replacing[0].card.name if replacing else ''} takes the place of q . k: keep one",
        )

    def tile(self, pairs: Pairs) -> Tensor:
        """The sum of all terms."""
        first, *others = (term.tile(pairs) for term in self.terms)  # type: ignore[operator]
        return sum(others, first)

    def by_distance(self, head: Tensor, distance: Tensor) -> Tensor | None:
        """The sum, where every term has this form."""
        parts = [term.by_distance(head, distance) for term in self.terms]  # type: ignore[operator]
        return None if any(part is None for part in parts) else sum(parts[1:], parts[0])

    def reach(self) -> int | None:
        """The shortest."""
        found = [reach for term in self._terms() if (reach := term.reach()) is not None]
        return min(found, default=None)

    def losses(self) -> dict[str, Tensor]:
        """Those of all terms."""
        return {name: loss for term in self._terms() for name, loss in term.losses().items()}

    def after_step(self) -> None:
        """Of every term."""
        for term in self._terms():
            term.after_step()

    @property
    def carries(self) -> bool:  # type: ignore[override]
        """Whether any does."""
        return any(term.carries for term in self._terms())

    @property
    def needs_map(self) -> bool:  # type: ignore[override]
        """Whether any does."""
        return any(term.needs_map for term in self._terms())

    def bind(self, call: Call, memory: Memory | None = None) -> tuple[Call, Memory | None]:
        """One term after another."""
        before = memory.parts if isinstance(memory, _Memories) else [None] * len(self.terms)
        after: list[Memory | None] = []
        for term, part in zip(self._terms(), before, strict=True):
            call, kept = term.bind(call, part)
            after.append(kept)
        return call, _Memories(after)

    def _terms(self) -> list[ScoreTerm]:
        return list(self.terms)  # type: ignore[arg-type]


@dataclass
class _Memories:
    """Those of several terms."""

    parts: list[Memory | None]

    def reorder(self, index: Tensor) -> None:
        for part in self.parts:
            if part is not None:
                part.reorder(index)


class RowsOf(ScoreTerm):
    """A term as seen by a part of the heads or of the queries of a call, from `head` and `row` on."""

    def __init__(self, term: ScoreTerm, head: int = 0, row: int = 0) -> None:
        super().__init__()
        self.term, self.head, self.row = term, head, row

    def tile(self, pairs: Pairs) -> Tensor:
        """By the indices of the whole call."""
        row = None if pairs.query_row is None else pairs.query_row + self.row
        return self.term.tile(replace(pairs, head=pairs.head + self.head, query_row=row))

    def by_distance(self, head: Tensor, distance: Tensor) -> Tensor | None:
        """As the whole term."""
        return self.term.by_distance(head + self.head, distance)

    def reach(self) -> int | None:
        """As the whole term."""
        return self.term.reach()


class ByQuery(ScoreTerm):
    """values [B, H, N, K] of a call, read at the query's row and at what `column` says of the pair."""

    def __init__(self, values: Tensor, column: Callable[[Pairs], Tensor]) -> None:
        super().__init__()
        self.values, self.column = values, column

    def tile(self, pairs: Pairs) -> Tensor:
        """One value for each pair; batch rows or heads of size 1 serve all."""
        column = self.column(pairs)
        assert pairs.query_row is not None
        batch, head = (
            index % size for index, size in zip((pairs.batch, pairs.head), self.values.shape, strict=False)
        )
        return self.values[batch, head, pairs.query_row.clamp(min=0), column]
