"""The edge predictor of the SAC paper: an LSTM that reads nodes and emits one edge after another.

Hochreiter and Schmidhuber 1997, "Long Short-Term Memory", Neural Computation 9(8). The sources come in order;
each step reads the node of the source and the node of the edge before. A document begins with an empty state.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mapformers.core.draw import normal
from mapformers.core.scope import Scope
from mapformers.mechanisms.content.sac_predictor import Noise, Predictor, drawn, dtype_of

TargetOf = Callable[[int, int, Tensor], Tensor]  # (source, slot, h [B, G, D]) to keys [B, G]


class State(NamedTuple):
    """h, c and the node of the last edge, [B, G, D] each."""

    h: Tensor
    c: Tensor
    last: Tensor

    def where(self, condition: Tensor, other: "State") -> "State":
        """self in the rows [B] where it holds, the other elsewhere."""
        return State(*(torch.where(condition[:, None, None], a, b) for a, b in zip(self, other, strict=True)))


class LstmPredictor(Predictor):
    """One step for each edge, in order: as many steps as edges."""

    def __init__(self, sizes: tuple[int, int, int], generator: torch.Generator) -> None:
        super().__init__(sizes, generator)
        groups, dim, _ = sizes
        self.weight = nn.Parameter(normal((groups, 3 * dim, 4 * dim), generator, (3 * dim) ** -0.5))
        self.bias = nn.Parameter(torch.zeros(groups, 4 * dim))

    def step(self, state: State, source: Tensor) -> State:
        """The state that chooses the next edge of `source` [B, G, D]; `last` is still the edge before."""
        read = torch.cat([source, state.last, state.h], -1)  # [B, G, 3 D]
        gates = torch.einsum("bgi,gio->bgo", read, self.weight.to(read.dtype)) + self.bias.to(read.dtype)
        admit, forget, emit, new = gates.chunk(4, -1)
        c = torch.sigmoid(forget) * state.c + torch.sigmoid(admit) * torch.tanh(new)
        return State(torch.sigmoid(emit) * torch.tanh(c), c, state.last)

    def choose(self, k: Tensor, scope: Scope, sources: slice, noise: Noise | None) -> Tensor:
        """Every source up to the last one asked for is walked through: there is no shorter way."""
        k = k.to(dtype_of(k, noise))
        nodes, uniform = k @ self.node.to(k.dtype), drawn(noise, scope, k, self.edges)
        found: list[Tensor] = []

        def chosen(i: int, slot: int, h: Tensor) -> Tensor:
            rows = slice(i, i + 1)
            part = None if uniform is None else uniform[:, :, slot : slot + 1, rows]
            best = self.targets(h[:, :, None, None], nodes, scope, rows, part)[:, :, 0, 0]  # [B, G]
            found.append(best)
            return best

        self._walk(nodes[:, :, : sources.stop], scope, chosen)
        return torch.stack(found, -1).unflatten(-1, (-1, self.edges))[:, :, sources]

    def states(self, k: Tensor, nodes: Tensor, scope: Scope, edges: Tensor) -> Tensor:
        """The same walk along given edges."""
        found: list[Tensor] = []

        def given(i: int, slot: int, h: Tensor) -> Tensor:
            found.append(h)
            return edges[:, :, i, slot]

        self._walk(nodes, scope, given)
        return torch.stack(found, 2).unflatten(2, (-1, self.edges))

    def _walk(self, nodes: Tensor, scope: Scope, target_of: TargetOf) -> None:
        """Through the sources of nodes [B, G, n, D]; target_of(source, slot, h) says which key was chosen."""
        batch, groups, n, dim = nodes.shape
        empty = State(*(nodes.new_zeros(batch, groups, dim) for _ in State._fields))
        begins = begins_of(scope, n, nodes.device).expand(batch, -1)
        state = empty
        for i in range(n):
            state = empty.where(begins[:, i], state)
            before = state
            for slot in range(self.edges):
                state = self.step(state, nodes[:, :, i])
                target = target_of(i, slot, state.h).clamp(min=0)  # [B, G]
                last = nodes.gather(2, target[:, :, None, None].expand(-1, -1, 1, dim)).squeeze(2)
                state = State(state.h, state.c, last)
            if scope.key_is_real is not None:  # padding leaves no trace
                state = state.where(scope.key_is_real[:, i].expand(batch), before)


def begins_of(scope: Scope, n: int, device: torch.device) -> Tensor:
    """[B or 1, n] whether a document begins at a token."""
    documents = scope.documents_of_keys()
    if documents is None:
        return torch.arange(n, device=device)[None] == 0
    first = torch.ones_like(documents, dtype=torch.bool)
    first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return first[:, :n]
