"""The edges of SAC written out: one head, one document, one edge after another."""

import torch
from torch import Tensor

from mapformers.core.scope import Scope
from mapformers.mechanisms.content.sac_lstm import LstmPredictor
from mapformers.mechanisms.content.sac_predictor import Noise, ParallelPredictor, Predictor


@torch.no_grad()
def defined_edges(predictor: Predictor, k: Tensor, scope: Scope, noise: Noise | None) -> Tensor:
    """[B, G, M, M] bool: whether the row has an edge to the column. k [B, G, M, D]."""
    batch, groups, m, _ = k.shape
    linked = torch.zeros(batch, groups, m, m, dtype=torch.bool, device=k.device)
    real = torch.ones(1, m, dtype=torch.bool) if scope.key_is_real is None else scope.key_is_real
    given = scope.documents_of_keys()
    documents = torch.zeros(1, m, dtype=torch.long) if given is None else given
    real, documents = real.expand(batch, m).cpu(), documents.expand(batch, m).cpu()
    for row in range(batch):
        for document in documents[row].unique().tolist():
            (tokens,) = (real[row] & (documents[row] == document)).nonzero(as_tuple=True)
            for head in range(groups):
                added = None if noise is None else _uniform(noise, len(tokens), predictor.edges, (row, head))
                edges = _of_document(predictor, head, k[row, head, tokens].double(), scope.causal, added)
                for source, targets in enumerate(edges):
                    linked[row, head, tokens[source], tokens[targets]] = True
    return linked


def _uniform(noise: Noise, n: int, edges: int, place: tuple[int, int]) -> Tensor:
    """[edges, n] of one document: row and head `place`."""
    row, head = place
    return noise.uniform(torch.arange(n)[None], torch.arange(edges), (row + 1, head + 1))[row, head]


def _of_document(
    predictor: Predictor, head: int, k: Tensor, causal: bool, uniform: Tensor | None
) -> list[list[int]]:
    """Targets of every token of k [n, D], as numbers of tokens."""
    nodes = k @ predictor.node[head].double()
    h = c = last = k.new_zeros(k.shape[1])
    edges: list[list[int]] = []
    for i in range(len(k)):
        targets: list[int] = []
        for slot in range(predictor.edges):
            if isinstance(predictor, LstmPredictor):
                read = torch.cat([nodes[i], last, h])
                gates = read @ predictor.weight[head].double() + predictor.bias[head].double()
                admit, forget, emit, new = gates.view(4, -1)
                c = forget.sigmoid() * c + admit.sigmoid() * new.tanh()
                h = emit.sigmoid() * c.tanh()
            else:
                assert isinstance(predictor, ParallelPredictor)
                h = k[i] @ predictor.slot[head, slot].double() + predictor.slot_bias[head, slot, 0].double()
            scores = (nodes[: i + 1] if causal else nodes) @ h / len(h) ** 0.5
            targets.append(
                int(scores.float().argmax()) if uniform is None else _sample(scores, uniform[slot, i])
            )
            last = nodes[targets[-1]]
        edges.append(targets)
    return edges


def _sample(scores: Tensor, uniform: Tensor) -> int:
    """The first place at which the probabilities so far sum to more than a number in (0, 1)."""
    so_far = 0.0
    for place, probability in enumerate(scores.softmax(0).tolist()):
        so_far += probability
        if so_far > float(uniform):
            return place
    return len(scores) - 1
