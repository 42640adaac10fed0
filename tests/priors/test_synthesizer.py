"""Synthesizer: each kind from its formula, the mixture's ends, and what is refused."""

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.core.errors import MapformersError
from mapformers.priors.synthesizer import Synthesizer
from tests.tolerances import assert_close

N, HEADS, DIM, LIMIT = 8, 2, 4, 12


def made(options: str) -> Synthesizer:
    term = mf.score(f"synthesizer(limit={LIMIT}, {options})", HEADS, DIM).double()
    assert isinstance(term, Synthesizer)
    return term


def drawn() -> Tensor:
    return torch.randn(3, 1, HEADS, N, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def scores_of(term: Synthesizer, q: Tensor) -> Tensor:
    """[B, H, N, N] pair by pair, from the formulas."""
    found = torch.zeros(1, HEADS, N, N, dtype=torch.float64)
    for h in range(HEADS):
        for i in range(N):
            for j in range(N):
                if term.config.kind == "random":
                    found[0, h, i, j] = term.tables[0][h, i, j]
                elif term.config.kind == "factorised_random":
                    found[0, h, i, j] = term.tables[0][h, i] @ term.tables[1][h, j]
                else:
                    hidden = torch.relu(q[0, h, i] @ term.inner[h] + term.inner_bias[h, 0])
                    first, *second = (
                        hidden @ w[h] + b[h, 0] for w, b in zip(term.outer, term.outer_bias, strict=True)
                    )
                    if second:
                        rank = term.config.rank
                        found[0, h, i, j] = first[j % rank] * second[0][j // rank]
                    else:
                        found[0, h, i, j] = first[j]
    return found


@pytest.mark.parametrize("kind", ["dense", "random", "factorised_dense", "factorised_random"])
def test_it_is_the_formula(kind: str) -> None:
    term, (q, k, v) = made(f"kind={kind}, rank=4"), drawn()
    with torch.no_grad():
        expected = torch.softmax(scores_of(term, q), -1) @ v
        assert_close(mf.attend(mf.mechanism("full"), q, k, v, score=term), expected, "rounding", kind)


def test_both_factors_name_every_position_once() -> None:
    """One index is taken modulo the first length, the other divided by it: all pairs are distinct."""
    rank = 4
    pairs = {(j % rank, j // rank) for j in range(LIMIT)}
    assert len(pairs) == LIMIT


def test_the_mixture_ends_at_plain_attention() -> None:
    term, (q, k, v) = made("mix=true"), drawn()
    assert term.share is not None
    with torch.no_grad():
        term.share.fill_(-40.0)
    assert_close(
        mf.attend(mf.mechanism("full"), q, k, v, score=term),
        mf.attend(mf.mechanism("full"), q, k, v),
        "rounding",
    )
    with torch.no_grad():
        term.share.zero_()  # where it starts: half of each
        half = torch.softmax((q @ k.mT / DIM**0.5 + scores_of(term, q)) / 2, -1) @ v
    assert_close(mf.attend(mf.mechanism("full"), q, k, v, score=term), half, "rounding")


def test_a_full_rank_table_is_a_table() -> None:
    """factorised_random with rank = limit and R_2 = I is random."""
    free, factored, (q, k, v) = made("kind=random"), made(f"kind=factorised_random, rank={LIMIT}"), drawn()
    with torch.no_grad():
        factored.tables[0].copy_(free.tables[0])
        factored.tables[1].copy_(torch.eye(LIMIT).expand(HEADS, -1, -1))
    outputs = [mf.attend(mf.mechanism("band", window=3), q, k, v, score=term) for term in (free, factored)]
    assert_close(*outputs, "rounding")


def test_frozen_tables_do_not_learn() -> None:
    assert all(p.requires_grad for p in made("kind=random").parameters())
    assert not any(p.requires_grad for p in made("kind=random, trained=false").parameters())


def test_positions_beyond_the_limit_are_refused() -> None:
    x = torch.zeros(1, 2, LIMIT + 1, DIM)
    with pytest.raises(MapformersError, match=f"limit must exceed every position, got position {LIMIT}"):
        mf.attend(mf.mechanism("full"), x, x, x, score=mf.score(f"synthesizer(limit={LIMIT})", 2, DIM))
