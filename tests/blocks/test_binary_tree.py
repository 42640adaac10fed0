"""The binary tree: its edges partition the sequence, its layers equal a dense attention over all nodes."""

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.blocks import binary_tree
from mapformers.blocks.tree_edges import SELF, TreeEdges, TreeShape, tree_edges
from mapformers.core.carry import Carry
from mapformers.kernels.softmax import masked_softmax, scaled_scores
from tests.contract import cases
from tests.contract.measure import exponent, peak_bytes
from tests.tolerances import assert_close

LENGTHS = range(1, 71)
CLIP = 3
Extents = list[tuple[int, int]]
Seen = dict[int, tuple[int, int, int] | None]  # node -> level, side, place of its edge; None = itself


def extents(n: int) -> Extents:
    """First leaf and end of every node, by halving ever larger pieces."""
    pieces, size = [(i, i + 1) for i in range(n)], 1
    while size < n:
        size *= 2
        pieces += [(start, min(n, start + size)) for start in range(0, n, size)]
    return pieces


def seen_by(i: int, n: int, k: int, causal: bool) -> Seen:
    """What leaf i sees: walk outwards over what is not covered, one level higher after each k nodes."""
    number = {(start, end - start, level): node for node, (start, end, level) in enumerate(with_levels(n))}
    found: Seen = {i: None}
    for side in (0,) if causal else (0, 1):
        edge, level = (i, 0) if side == 0 else (i + 1, 0)
        while (edge > 0) if side == 0 else (edge < n):
            for place in range(k):
                if (edge <= 0) if side == 0 else (edge >= n):
                    break
                # Where the border lies inside a node of this level, its other half is one level lower.
                lower = level if edge % 2**level == 0 else level - 1
                start = edge - 2**lower if side == 0 else edge
                size = min(n, start + 2**lower) - start
                found[number[start, size, lower]] = (level, side, place)
                edge = start if side == 0 else start + size
            level += 1
    return found


def with_levels(n: int) -> list[tuple[int, int, int]]:
    """Start, end and level of every node."""
    level, found = 0, []
    for start, end in extents(n):
        level += bool(found) and start == 0
        found.append((start, end, level))
    return found


def edges_of(n: int, k: int, causal: bool, clip: int = CLIP) -> TreeEdges:
    return tree_edges(TreeShape(n, k, clip, causal))


def nodes_of(row: Tensor) -> list[int]:
    return [node for node in row.tolist() if node >= 0]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_every_leaf_covers_every_position_once(k: int, causal: bool) -> None:
    for n in LENGTHS:
        where, edges = extents(n), edges_of(n, k, causal)
        for i in range(n):
            covered = [p for node in nodes_of(edges.node[i]) for p in range(*where[node])]
            assert sorted(covered) == list(range(i + 1 if causal else n)), (n, i)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_spans_hold_their_leaves(k: int) -> None:
    for n in LENGTHS:
        where, edges = extents(n), edges_of(n, k, False)
        assert TreeShape(n, k, CLIP, False).spans == len(where) - n
        for span, (start, end) in enumerate(where[n:]):
            leaves = (edges.span_of_leaf == span).any(1).nonzero().flatten().tolist()
            assert leaves == list(range(start, end))
            assert edges.start[span] == start


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_edges_and_their_kinds_equal_a_walk_over_the_leaves(k: int, causal: bool) -> None:
    for n in LENGTHS:
        edges = edges_of(n, k, causal)
        for i in range(n):
            expected = {node: kind_of(kind, k, causal) for node, kind in seen_by(i, n, k, causal).items()}
            shown = edges.node[i] >= 0
            pairs = zip(edges.node[i][shown].tolist(), edges.kind[shown].tolist(), strict=True)
            assert dict(pairs) == expected, (n, i)


def kind_of(kind: tuple[int, int, int] | None, k: int, causal: bool, clip: int = CLIP) -> int:
    if kind is None:
        return SELF
    level, side, place = kind
    return 1 + (min(level, clip) * (1 if causal else 2) + side) * k + place


def test_eight_leaves_by_hand() -> None:
    """k = 1. Nodes 8-11 are pairs, 12 and 13 fours, 14 the root. Leaf 5: itself, 4, then 2 3, then the other
    half of 0-3, which is 0 1; to the right 6, then the other half of 6 7.
    """
    assert nodes_of(edges_of(8, 1, False).node[5]) == [5, 4, 9, 8, 6, 7]
    assert nodes_of(edges_of(8, 1, True).node[5]) == [5, 4, 9, 8]
    assert nodes_of(edges_of(8, 1, False).node[0]) == [0, 1, 9, 13]
    assert nodes_of(edges_of(8, 2, False).node[0]) == [0, 1, 2, 3, 10, 11]


def test_a_child_that_is_not_there_is_not_seen() -> None:
    """Three leaves: the parent of leaf 2 has no other child. The official builder links leaves 0 1."""
    assert nodes_of(edges_of(3, 1, False).node[1]) == [1, 0, 2]


def test_edges_are_kept_by_length_and_grow_like_n_log_n() -> None:
    assert edges_of(64, 4, True) is edges_of(64, 4, True)
    widths = [edges_of(n, 4, True).node.shape[1] for n in (512, 1024, 2048)]
    assert widths[1] - widths[0] == widths[2] - widths[1] == 4


def dense(block: binary_tree.BinaryTreeBlock, nodes: Tensor, n: int, real: Tensor | None = None) -> Tensor:
    """One layer over all nodes: a boolean matrix of edges and a bias for every kind of edge."""
    config, where = block.config, extents(n)
    mask = torch.zeros(len(where), len(where), dtype=torch.bool)
    kind = torch.zeros(len(where), len(where), dtype=torch.long)
    for i in range(n):
        for node, found in seen_by(i, n, config.k, block.causal).items():
            mask[i, node] = True
            kind[i, node] = kind_of(found, config.k, block.causal, config.clip)
    for span, (start, end) in list(enumerate(where))[n:]:
        mask[span, start:end] = True
    allowed = mask.expand(nodes.shape[0], 1, -1, -1)
    if real is not None:
        alive = torch.stack([real[:, start:end].any(1) for start, end in where], 1)
        allowed = allowed & alive[:, None, None, :]
    y = block.attention_norm(nodes) if config.norm == "pre" else nodes
    q, k, v = block.project(y, y)
    bias = torch.einsum("bhid,ijd->bhij", q, block.edge_keys[kind]) * q.shape[-1] ** -0.5
    bias = torch.cat([bias[:, :, :n], torch.zeros_like(bias[:, :, n:])], 2)
    nodes = nodes + block.merge(masked_softmax(scaled_scores(q, k) + bias, allowed) @ v)
    if config.norm == "pre":
        return nodes + block.feed_forward(block.feed_forward_norm(nodes))
    nodes = block.attention_norm(nodes)
    return block.feed_forward_norm(nodes + block.feed_forward(nodes))


def stacked(
    blocks: list[torch.nn.Module], x: Tensor, real: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    carry = Carry(key_is_real=real)
    for block in blocks:
        x, carry = block(x, carry)
    return x, carry.stream


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("text", cases.BLOCKS["binary_tree"])
def test_two_layers_equal_the_dense_form(text: str, causal: bool, generator: torch.Generator) -> None:
    """Outputs, spans, and the gradients of the input and of every parameter."""
    blocks = [cases.block(text, generator, causal) for _ in range(2)]
    for n in (1, 2, 3, 13, 32, 41):
        x = cases.draw((2, n, cases.DIM), generator).requires_grad_()
        y, stream = stacked(blocks, x)
        nodes = torch.cat([x, torch.zeros(2, len(extents(n)) - n, cases.DIM)], 1)
        for block in blocks:
            nodes = dense(block, nodes, n)
        found = torch.cat([y, stream], 1)
        assert_close(found, nodes, "parity", f"{text}, {n} leaves")
        leaves = [x, *(p for block in blocks for p in block.parameters())]
        direction = cases.draw(tuple(nodes.shape), generator)
        for a, b in zip(
            torch.autograd.grad((found * direction).sum(), leaves, allow_unused=True),
            torch.autograd.grad((nodes * direction).sum(), leaves, allow_unused=True),
            strict=True,
        ):
            assert_close(torch.zeros(1) if a is None else a, torch.zeros(1) if b is None else b, "gradient")


@pytest.mark.parametrize("causal", [False, True])
def test_padding_in_the_dense_form(causal: bool, generator: torch.Generator) -> None:
    blocks = [cases.block("binary_tree(k=2)", generator, causal) for _ in range(2)]
    x, real = cases.draw((2, 21, cases.DIM), generator), cases.mask("right", 21, generator)
    nodes = torch.cat([x, torch.zeros(2, len(extents(21)) - 21, cases.DIM)], 1)
    for block in blocks:
        nodes = dense(block, nodes, 21, real)
    assert_close(stacked(blocks, x, real)[0][real], nodes[:, :21][real], "parity")


def test_later_leaves_change_nothing_over_several_layers(generator: torch.Generator) -> None:
    """Neither leaves before them, nor spans that end before them, which are final."""
    blocks = [cases.block("binary_tree(k=1)", generator, True) for _ in range(4)]
    n = 37
    x = cases.draw((1, n, cases.DIM), generator)
    before, spans = stacked(blocks, x)
    for cut in (1, 8, 16, 36):
        changed = torch.cat([x[:, :cut], 10 * cases.draw((1, n - cut, cases.DIM), generator)], 1)
        after, after_spans = stacked(blocks, changed)
        assert_close(after[:, :cut], before[:, :cut], "rounding", f"leaves from {cut}")
        final = [s for s, (_, end) in enumerate(extents(n)[n:]) if end <= cut]
        assert_close(after_spans[:, final], spans[:, final], "rounding", f"spans up to {cut}")
        prefix, _ = stacked(blocks, x[:, :cut])
        assert_close(prefix, before[:, :cut], "rounding", f"the first {cut} leaves alone")


def test_two_layers_reach_every_earlier_leaf(generator: torch.Generator) -> None:
    """Spans start empty: what lies far off comes with the second layer."""
    blocks = [cases.block("binary_tree(k=1)", generator, True) for _ in range(2)]
    x = cases.draw((1, 37, cases.DIM), generator).requires_grad_()
    weight = cases.draw((1, cases.DIM), generator)[0]
    for layers, everything in ((1, False), (2, True)):
        y, _ = stacked(blocks[:layers], x)
        (gradient,) = torch.autograd.grad((y[0, 30] * weight).sum(), x)
        reached = gradient[0].ne(0).any(-1)
        assert reached[:31].all() == everything
        assert not reached[31:].any()


def test_gathering_in_parts_changes_nothing(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = cases.block("binary_tree(k=2)", generator, True)
    x = cases.draw((2, 67, cases.DIM), generator).requires_grad_()
    results = []
    for limit in (binary_tree.GATHERED, 1):
        monkeypatch.setattr(binary_tree, "GATHERED", limit)
        y = block(x, Carry())[0]
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *block.parameters()])])
    for a, b in zip(*results, strict=True):
        assert_close(a, b, "gradient")


def test_memory_grows_like_n_log_n(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary_tree, "GATHERED", 2**16)
    block = mf.block("binary_tree(k=4)", 16, 2, causal=True)
    small, large = (peak_bytes(lambda n=n: block(torch.zeros(1, n, 16), Carry())[0]) for n in (1024, 4096))
    assert exponent(small, large, 4) < 1.2, (small, large)


def test_refusals_name_the_block() -> None:
    block, x = mf.block("binary_tree", 32, 4), torch.zeros(2, 9, 32)
    with pytest.raises(mf.MapformersError, match="binary_tree: segments"):
        block(x, Carry(segments=torch.zeros(2, 9, dtype=torch.long)))
    with pytest.raises(mf.MapformersError, match=r"binary_tree: stream must have shape \(2, 11, 32\)"):
        block(x, Carry(stream=torch.zeros(2, 4, 32)))
    with pytest.raises(mf.MapformersError, match="binary_tree: rotary"):
        mf.block("binary_tree", 32, 4, rotary=True)
    with pytest.raises(mf.MapformersError, match="binary_tree: heads must divide dim=32"):
        mf.block("binary_tree", 32, 5)
    for option in ("k=0", "clip=-1", "hidden=-1"):
        with pytest.raises(mf.MapformersError, match=f"binary_tree: {option.split('=')[0]} must be"):
            mf.block(f"binary_tree({option})", 32, 4)
