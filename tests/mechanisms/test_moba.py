"""moba: by hand, means of blocks, both directions, documents, and a choice that runs in stretches."""

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.core.mechanism import Mechanism, Shape
from mapformers.core.plans import Windows
from mapformers.core.scope import Scope
from mapformers.kernels.nearest import first_best
from mapformers.mechanisms.content import blocks
from tests.mechanisms.test_by_hand import H, Q, T, weights_by_probing
from tests.tolerances import assert_close


def moba(**options: int) -> Mechanism:
    return mf.mechanism("moba", **options).bind(Shape(1, 1, 2)).double()


def tokens(*rows: tuple[float, float]) -> Tensor:
    """Tokens so short that all scores are equal to 1e-16, and still differ in which block is nearer."""
    return 1e-9 * torch.tensor(rows, dtype=torch.float64)[None, None]


def assert_shown(made: Mechanism, q: Tensor, k: Tensor, causal: bool, rows: list[list[float]]) -> None:
    expected = torch.tensor(rows, dtype=torch.float64)
    assert_close(weights_by_probing(made, q, k, causal), expected, "parity", "plan")
    assert_close(mf.dense_weights(made, q, k, causal=causal)[0, 0], expected, "parity", "definition")


def test_by_hand() -> None:
    """Blocks of one token: the last query likes the first block best, then the third, then the second."""
    k = tokens((1, 0), (-1, 0), (0, 1), (0, 0))
    q = tokens((1, 0), (1, 0), (1, 0), (2, 1))
    assert_shown(moba(block=1, top=1), q, k, True, [[1, 0, 0, 0], [H, H, 0, 0], [H, 0, H, 0], [H, 0, 0, H]])
    last = [T, 0, T, T]
    assert_shown(moba(block=1, top=2), q, k, True, [[1, 0, 0, 0], [H, H, 0, 0], [T, T, T, 0], last])


def test_the_mean_of_a_block_decides_by_hand() -> None:
    """Blocks of two: the mean of the first is 0, so it is taken in spite of its second key."""
    k = tokens((1, 0), (-1, 0), (-1, 0), (-1, 0), (0, 0))
    q = tokens((0, 0), (0, 0), (0, 0), (0, 0), (1, 0))
    rows = [[1, 0, 0, 0, 0], [H, H, 0, 0, 0], [T, T, T, 0, 0], [Q, Q, Q, Q, 0]]
    assert_shown(moba(block=2, top=1), q, k, True, [*rows, [T, T, 0, 0, T]])


def test_bidirectional_blocks_compete_on_both_sides_by_hand() -> None:
    k = tokens((-1, 0), (0, 0), (1, 0), (0, 1))
    q = tokens((1, 0), (1, 0), (1, 0), (-1, 0))
    rows = [[H, 0, H, 0], [0, H, H, 0], [0, H, H, 0], [H, 0, 0, H]]
    assert_shown(moba(block=1, top=1), q, k, False, rows)


def test_everything_is_seen_when_top_holds_all_blocks(generator: torch.Generator) -> None:
    q, k, v = torch.randn(3, 2, 2, 23, 8, generator=generator, dtype=torch.float64)
    for causal in (True, False):
        seen = mf.attend(mf.mechanism("moba", block=4, top=6), q, k, v, causal=causal)
        assert_close(seen, mf.attend(mf.mechanism("full"), q, k, v, causal=causal), "parity")


def test_blocks_begin_with_each_document() -> None:
    """Two documents of three tokens in blocks of two: each has blocks of its own."""
    k = tokens(*[(1, 0)] * 6)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1]])
    scope = Scope.of(True, segments=segments)
    weights = moba(block=2, top=3).dense_weights(k, k, scope)[0, 0]
    one = torch.tensor([[1, 0, 0], [H, H, 0], [T, T, T]], dtype=torch.float64)
    assert_close(weights, torch.block_diag(one, one), "parity")


def test_the_choice_runs_in_stretches(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of queries and blocks are alive for some queries at a time, so memory stays linear."""
    q, k = torch.randn(2, 2, 4, 700, 8, generator=generator)
    made = mf.mechanism("moba", block=6, top=3).bind(Shape(4, 4, 8))
    whole = made.plan(q, k, Scope.of(True))
    largest = []

    def watched(scores: Tensor, count: int) -> Tensor:
        largest.append(scores.numel())
        return first_best(scores, count)

    monkeypatch.setattr(blocks, "SCORES_ALIVE", 10_000)
    monkeypatch.setattr(blocks, "first_best", watched)
    stretched = made.plan(q, k, Scope.of(True))
    assert isinstance(whole, Windows)
    assert isinstance(stretched, Windows)
    assert whole.query_segment is not None
    assert stretched.query_segment is not None
    assert torch.equal(whole.query_segment, stretched.query_segment)
    assert len(largest) > 50
    assert max(largest) <= 10_000


@pytest.mark.parametrize("name", ["block", "top"])
def test_bad_input(name: str) -> None:
    with pytest.raises(mf.MapformersError, match=f"moba: {name} must be 1 or more, got 0"):
        mf.mechanism("moba", **{name: 0})
