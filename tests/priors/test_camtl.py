"""Conditional attention: blocks by hand, the task of each row, plain attention, decoding."""

import pytest
import torch

import mapformers as mf
from tests.priors.distances import by_softmax, decodes_as_forward, drawn, matrix
from tests.tolerances import assert_close


def test_by_hand() -> None:
    """Two blocks of two in five positions: off the blocks, and from the limit on, nothing is added."""
    term = mf.score("camtl(blocks=2, limit=4)", 2, 8)
    with torch.no_grad():
        term.table.copy_(torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]))
    expected = [[1, 2, 0, 0, 0], [3, 4, 0, 0, 0], [0, 0, 5, 6, 0], [0, 0, 7, 8, 0], [0, 0, 0, 0, 0]]
    found = matrix(term, 2, torch.arange(5))
    assert found[0, 0].tolist() == found[0, 1].tolist() == expected


def test_the_last_block_is_cut() -> None:
    """Five positions in two blocks: three and two."""
    term = mf.score("camtl(blocks=2, limit=5)", 1, 8)
    with torch.no_grad():
        term.table.fill_(1.0)
    seen = matrix(term, 1, torch.arange(7))[0, 0]
    assert torch.equal(seen, torch.block_diag(torch.ones(3, 3), torch.ones(2, 2), torch.zeros(2, 2)))


def test_every_row_has_its_task() -> None:
    """(1 + gamma_j) A + beta_j with gamma and beta of the task; None = A alone; one number = all rows."""
    term = mf.score("camtl(blocks=2, limit=4, tasks=3, size=2)", 1, 8)
    with torch.no_grad():
        term.table.fill_(2.0)
        term.embedding.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        term.to_columns.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]))
    term.task = torch.tensor([0, 1, 2])
    found = matrix(term, 1, torch.arange(4), batch=3)
    assert found[0, 0, :2, :2].tolist() == [[2, 2], [2, 2]]
    assert found[1, 0, :2, :2].tolist() == [[9, 15], [9, 15]]  # (1 + 1) 2 + 5, (1 + 3) 2 + 7
    assert found[2, 0, 2:, 2:].tolist() == [[12, 18], [12, 18]]  # (1 + 2) 2 + 6, (1 + 4) 2 + 8
    assert not found[:, 0, :2, 2:].any()
    term.task = 1
    assert torch.equal(matrix(term, 1, torch.arange(4)), found[1:2])
    term.task = None
    assert torch.equal(matrix(term, 1, torch.arange(4)), found[0:1])


@pytest.mark.parametrize("causal", [True, False])
def test_zeros_are_plain_attention_and_blocks_are_tables(causal: bool, generator: torch.Generator) -> None:
    q, k, v = drawn(2, 21, generator)
    term = mf.score("camtl(blocks=3, limit=18, tasks=2, size=4)", 2, 8).double()
    term.task = torch.tensor([1, 0])
    for mechanism in (mf.mechanism("full"), mf.mechanism("band", window=20)):
        found = mf.attend(mechanism, q, k, v, causal=causal, score=term)
        expected = by_softmax(q, k, v, matrix(term, 2, torch.arange(21), batch=2), causal)
        assert_close(found, expected, "parity")
        leaves = [q, *term.parameters()]
        for a, b in zip(
            torch.autograd.grad(found.square().sum(), leaves, retain_graph=True),
            torch.autograd.grad(expected.square().sum(), leaves),
            strict=True,
        ):
            assert_close(a, b, "gradient")
    with torch.no_grad():
        for parameter in term.parameters():
            parameter.zero_()
    found = mf.attend(mf.mechanism("full"), q, k, v, causal=causal, score=term)
    assert_close(found, by_softmax(q, k, v, torch.zeros(()), causal), "parity")


def test_decode(generator: torch.Generator) -> None:
    step, whole = decodes_as_forward("band(window=9)", "camtl(blocks=3, limit=12, tasks=2)", generator)
    assert_close(step, whole, "decode")


@pytest.mark.parametrize("task", [torch.tensor([0, 2]), torch.tensor([0, 1, 0]), -1])
def test_a_bad_task_is_refused(task: torch.Tensor | int, generator: torch.Generator) -> None:
    term = mf.score("camtl(tasks=2)", 2, 8)
    term.task = task
    with pytest.raises(mf.MapformersError, match="camtl: task must"):
        mf.attend(mf.mechanism("full"), *drawn(2, 5, generator), score=term)


def test_a_task_needs_embeddings(generator: torch.Generator) -> None:
    term = mf.score("camtl", 2, 8)
    term.task = 0
    with pytest.raises(mf.MapformersError, match="camtl: task needs embeddings"):
        mf.attend(mf.mechanism("full"), *drawn(2, 5, generator), score=term)


@pytest.mark.parametrize("options", ["blocks=0", "limit=0", "tasks=-1", "size=0", "blocks=9, limit=8"])
def test_bad_options_are_refused(options: str) -> None:
    with pytest.raises(mf.MapformersError, match=r"camtl: .*; "):
        mf.score(f"camtl({options})", 2, 8)
