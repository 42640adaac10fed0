"""Irrelevant tokens: what was there stays in its order, pairs stay whole, and the share is as asked for."""

import pytest
import torch

from mapformers.core.errors import MapformersError
from mapformers.tasks.irrelevant import inject
from mapformers.tasks.recall import Recall, RecallBatch

TASK = Recall(pairs=3, length=24, gap=4, vocabulary=64)


def batches(share: float) -> tuple[RecallBatch, RecallBatch]:
    generator = torch.Generator().manual_seed(0)
    plain = TASK.batch(8, generator)
    return plain, inject(TASK, plain, share, generator)


def test_no_share_changes_nothing() -> None:
    plain, same = batches(0.0)
    assert all(torch.equal(a, b) for a, b in zip(plain, same, strict=True))


@pytest.mark.parametrize(("share", "length"), [(0.25, 32), (0.5, 48), (0.75, 96)])
def test_a_share_of_the_longer_sequence_is_irrelevant(share: float, length: int) -> None:
    plain, noisy = batches(share)
    assert noisy.tokens.shape == (8, length)
    assert torch.equal(noisy.target, plain.target)
    for old, new in zip(plain.tokens.tolist(), noisy.tokens.tolist(), strict=True):
        kept = [token for token in new if token in old]
        assert kept == old, "order changed, or an irrelevant token occurs in the example"
        for place in range(0, 2 * TASK.pairs, 2):
            key = new.index(old[place])
            assert new[key + 1] == old[place + 1], "a pair was torn apart"


def test_queries_move_with_their_keys() -> None:
    plain, noisy = batches(0.5)
    assert torch.equal(noisy.tokens.gather(1, noisy.place), plain.tokens.gather(1, plain.place))
    assert not torch.equal(noisy.place, plain.place)


def test_a_share_of_one_is_refused() -> None:
    with pytest.raises(MapformersError, match=r"must lie in \[0, 1\), got 1.0"):
        batches(1.0)
