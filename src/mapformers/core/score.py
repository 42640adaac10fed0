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


class SumOfTerms(ScoreTerm):
    """Several score terms, added."""

    def __init__(self, terms: list[ScoreTerm]) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)

    def tile(self, pairs: Pairs) -> Tensor:
        """The sum of all terms."""
        first, *others = (term.tile(pairs) for term in self.terms)  # type: ignore[operator]
        return sum(others, first)
