"""Score terms: what is added to the scores before the mask and the softmax."""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Pairs:
    """Index tensors of a tile of scores; all broadcast to the shape of the tile.

    batch, head            index of the batch row and of the head
    query, key             true positions, whatever the order of the tile
    """

    batch: Tensor
    head: Tensor
    query: Tensor
    key: Tensor


class ScoreTerm(nn.Module):
    """Pointwise in (batch, head, query, key): works in every softmax kernel, tile by tile."""

    def tile(self, pairs: Pairs) -> Tensor:
        """What to add to the scaled scores of these pairs; broadcastable to the tile, differentiable."""
        raise NotImplementedError(f"{type(self).__name__} must define tile(pairs)")

    def by_distance(self, head: Tensor, distance: Tensor) -> Tensor | None:
        """The term as a function of head and distance (query minus key position); None if it is not one."""
        return None


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

    def tile(self, pairs: Pairs) -> Tensor:
        """The sum of all terms."""
        first, *others = (term.tile(pairs) for term in self.terms)  # type: ignore[operator]
        return sum(others, first)

    def by_distance(self, head: Tensor, distance: Tensor) -> Tensor | None:
        """The sum, where every term has this form."""
        parts = [term.by_distance(head, distance) for term in self.terms]  # type: ignore[operator]
        return None if any(part is None for part in parts) else sum(parts[1:], parts[0])
