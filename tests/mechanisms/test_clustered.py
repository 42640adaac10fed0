"""Clusters of queries: by hand, exact cases, bounds, and what Lloyd's algorithm does."""

import pytest
import torch

import mapformers as mf
from mapformers.core.mechanism import Shape
from mapformers.mechanisms.prototypes.clustered import Clustered
from mapformers.mechanisms.prototypes.hamming import bits_of, clusters_of, tiles_of
from tests.tolerances import assert_close

NAMES = ("clustered", "improved_clustered")


def made(name: str, heads: int = 2, dim: int = 8, **options: int) -> Clustered:
    mechanism = mf.mechanism(name, **options).bind(Shape(heads, heads, dim), torch.Generator().manual_seed(1))
    assert isinstance(mechanism, Clustered)
    return mechanism.double()


def test_four_tokens_by_hand() -> None:
    """One channel and one plane at 0: queries 1 and 3, then -1 and -3, so means of 2 and -2."""
    q = torch.tensor([1.0, 3.0, -1.0, -3.0], dtype=torch.float64).view(1, 1, 4, 1)
    k = torch.tensor([0.0, 0.5, -0.5, 1.0], dtype=torch.float64).view(1, 1, 4, 1)
    rows = {sign: (2 * sign * k[0, 0, :, 0]).softmax(-1) for sign in (1, -1)}
    expected = torch.stack([rows[1], rows[1], rows[-1], rows[-1]])
    plain = made("clustered", 1, 1, clusters=2, bits=1)
    plain.planes.copy_(torch.tensor([[[1.0, 0.0]]]))
    assert_close(mf.dense_weights(plain, q, k)[0, 0], expected, "parity")
    v = torch.eye(4, dtype=torch.float64)[None, None]
    assert_close(mf.attend(plain, q, k, v)[0, 0], expected, "parity")

    better = made("improved_clustered", 1, 1, clusters=2, bits=1, top=2)
    better.planes.copy_(torch.tensor([[[1.0, 0.0]]]))
    for row, best in enumerate(([1, 3], [1, 3], [0, 2], [0, 2])):  # the largest keys, or the smallest
        own = (q[0, 0, row] * k[0, 0, best, 0]).softmax(-1)
        expected[row, best] = expected[row, best].sum() * own
    assert_close(mf.attend(better, q, k, v)[0, 0], expected, "parity")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("padded", [False, True])
def test_exact_with_a_cluster_for_each_query(name: str, padded: bool, generator: torch.Generator) -> None:
    q, k, v = torch.randn(3, 2, 2, 23, 8, generator=generator, dtype=torch.float64)
    real = torch.arange(23).expand(2, -1) >= torch.tensor([[0], [6]]) if padded else None
    ours = mf.attend(made(name, clusters=23, bits=2), q, k, v, key_is_real=real)
    full = mf.attend(mf.mechanism("full"), q, k, v, key_is_real=real)
    if real is not None:
        ours, full = (x.transpose(1, 2)[real] for x in (ours, full))
    assert_close(ours, full, "parity")


def test_exact_where_every_key_is_among_the_best(generator: torch.Generator) -> None:
    q, k, v = torch.randn(3, 2, 2, 23, 8, generator=generator, dtype=torch.float64)
    ours = mf.attend(made("improved_clustered", clusters=3, top=23), q, k, v)
    assert_close(ours, mf.attend(mf.mechanism("full"), q, k, v), "parity")


@pytest.mark.parametrize("seed", range(20))
def test_no_row_of_the_improved_form_is_worse(seed: int) -> None:
    """L1 distance of the weights from those of full attention."""
    generator = torch.Generator().manual_seed(seed)
    q, k = (2 * torch.randn(1, 2, 60, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    exact = mf.dense_weights(mf.mechanism("full"), q, k)
    errors = [(mf.dense_weights(made(name, clusters=5), q, k) - exact).abs().sum(-1) for name in NAMES]
    assert (errors[1] <= errors[0] + 1e-12).all()
    assert errors[1].mean() < 0.9 * errors[0].mean()


def test_equal_queries_share_a_cluster(generator: torch.Generator) -> None:
    x = torch.randn(1, 2, 5, 8, generator=generator).repeat(1, 1, 6, 1)
    bits = bits_of(x, torch.randn(2, 16, 9, generator=generator))
    found = clusters_of(bits, torch.ones(1, 30, dtype=torch.bool), 4, 10)
    assert torch.equal(found[..., :5].repeat(1, 1, 6), found)


def test_lloyd_never_moves_rows_further_from_their_codes(generator: torch.Generator) -> None:
    bits = bits_of(torch.randn(2, 2, 90, 8, generator=generator), torch.randn(2, 24, 9, generator=generator))
    real = torch.rand(2, 90, generator=generator) > 0.2

    def disagreement(iterations: int) -> float:
        cluster = clusters_of(bits, real, 6, iterations)
        total = 0.0
        for c in range(6):
            member = (cluster == c).unsqueeze(-1)
            votes = (bits * member).sum(2, keepdim=True)
            total += float(((bits != votes.sign()) & member & (votes != 0)).sum())
        return total

    found = [disagreement(iterations) for iterations in (0, 1, 5)]
    assert found[0] > found[1] >= found[2]


def test_padding_has_no_vote_and_no_cluster(generator: torch.Generator) -> None:
    bits = bits_of(torch.randn(1, 2, 40, 8, generator=generator), torch.randn(2, 16, 9, generator=generator))
    real = torch.rand(1, 40, generator=generator) > 0.4
    found = clusters_of(bits, real, 4, 10)
    alone = clusters_of(bits[:, :, real[0]], torch.ones(1, int(real.sum()), dtype=torch.bool), 4, 10)
    assert torch.equal(found[:, :, real[0]], alone)
    assert (found[:, :, ~real[0]] == -1).all()


@pytest.mark.parametrize("name", NAMES)
def test_padding_of_a_context_as_long_as_the_input_is_no_padding_of_the_queries(
    name: str, generator: torch.Generator
) -> None:
    """The same with one more padded key, where the lengths tell them apart."""
    layer = mf.attention(f"{name}(clusters=3)", 8, 2).double()
    x, context = (torch.randn(2, 9, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    real = torch.rand(2, 9, generator=generator) > 0.4
    longer = (
        torch.cat([context, context[:, :1]], 1),
        torch.cat([real, torch.zeros(2, 1, dtype=torch.bool)], 1),
    )
    expected = layer(x, context=longer[0], context_is_real=longer[1])
    assert_close(layer(x, context=context, context_is_real=real), expected, "parity")


def test_tiles_hold_every_member_once(generator: torch.Generator) -> None:
    cluster = torch.randint(-1, 5, (2, 3, 50), generator=generator)
    rows, owner = tiles_of(cluster, 5, 4)
    for b in range(2):
        for h in range(3):
            kept = rows[b, h][rows[b, h] >= 0]
            assert sorted(kept.tolist()) == (cluster[b, h] >= 0).nonzero()[:, 0].tolist()
            for members, c in zip(rows[b, h], owner[b, h].tolist(), strict=True):
                assert {int(cluster[b, h, i]) for i in members if i >= 0} <= {c}


def test_bad_input() -> None:
    for name, options in (
        ("clustered: clusters must be 1 or more, got 0", {"clusters": 0}),
        ("clustered: bits must be 1 or more, got 0", {"bits": 0}),
        ("clustered: iterations must be 0 or more, got -1", {"iterations": -1}),
    ):
        with pytest.raises(mf.MapformersError, match=name):
            mf.mechanism("clustered", **options)
    with pytest.raises(mf.MapformersError, match="improved_clustered: top must be 1 or more, got 0"):
        mf.mechanism("improved_clustered", top=0)
