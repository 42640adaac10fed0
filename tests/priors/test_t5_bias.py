"""The T5 bias: buckets by hand and as in the published code, distance alone, plain attention."""

import pytest
import torch

import mapformers as mf
from mapformers.priors.t5_bias import bucket_of
from tests.priors.distances import by_softmax, decodes_as_forward, drawn, matrix
from tests.tolerances import assert_close


def numbered(text: str, heads: int, causal: bool) -> mf.core.score.ScoreTerm:
    """A table that holds the bucket, plus 100 for each head."""
    term = mf.score(text, heads, 8, causal=causal)
    with torch.no_grad():
        buckets = torch.arange(term.table.shape[1])
        term.table.copy_(buckets + 100 * torch.arange(heads)[:, None])
    return term


def test_by_hand() -> None:
    """Eight buckets up to 12, causal: 0 to 3 alone, then ends at 5.3 = 4 3^(1/4), 6.9, 9.1."""
    term = numbered("t5_bias(buckets=8, limit=12)", 2, causal=True)
    found = matrix(term, 2, torch.arange(15))[0, :, 14].flip(-1)  # by distance
    expected = torch.tensor([0, 1, 2, 3, 4, 4, 5, 6, 6, 6, 7, 7, 7, 7, 7])
    assert torch.equal(found.long(), torch.stack([expected, expected + 100]))


def test_the_sign_splits_the_buckets() -> None:
    """Bidirectional: four buckets behind the query (0, 1, to 4, farther), four ahead of it."""
    term = numbered("t5_bias(buckets=8, limit=8)", 1, causal=False)
    found = matrix(term, 1, torch.arange(13))[0, 0, 6].long().tolist()
    assert found == [3, 3, 3, 2, 2, 1, 0, 5, 6, 6, 7, 7, 7]


@pytest.mark.parametrize("causal", [True, False])
def test_only_the_distance_counts(causal: bool) -> None:
    term = mf.score("t5_bias", 3, 8, causal=causal)
    positions = torch.tensor([0, 3, 4, 40, 41, 300])
    assert torch.equal(matrix(term, 3, positions + 1000), matrix(term, 3, positions))


@pytest.mark.parametrize("mechanism", ["full", "band(window=30)"])
@pytest.mark.parametrize("causal", [True, False])
def test_a_constant_table_is_plain_attention(
    mechanism: str, causal: bool, generator: torch.Generator
) -> None:
    term = mf.score("t5_bias", 2, 8, causal=causal).double()
    with torch.no_grad():
        term.table.fill_(0.7)  # softmax does not see a constant
    q, k, v = drawn(2, 31, generator)
    pattern = mf.mechanism("full") if mechanism == "full" else mf.mechanism("band", window=30)
    found = mf.attend(pattern, q, k, v, causal=causal, score=term)
    assert_close(found, by_softmax(q, k, v, torch.zeros(()), causal), "parity")


@pytest.mark.slow
def test_buckets_of_the_published_code() -> None:
    modelling = pytest.importorskip("transformers.models.t5.modeling_t5", reason="needs transformers with T5")
    theirs = modelling.T5Attention._relative_position_bucket
    distance = torch.arange(-700, 700)
    for buckets, limit in ((32, 128), (16, 64), (32, 500), (8, 12)):
        both = theirs(-distance, bidirectional=True, num_buckets=buckets, max_distance=limit)
        one = theirs(-distance, bidirectional=False, num_buckets=buckets, max_distance=limit)
        ours = bucket_of(distance.abs(), buckets // 2, limit) + (distance < 0) * (buckets // 2)
        assert torch.equal(ours, both)
        assert torch.equal(bucket_of(distance.clamp(min=0), buckets, limit), one)


def test_a_start_is_small_and_comes_from_the_seed() -> None:
    a, b, c = (mf.score("t5_bias", 8, 64, seed=seed).table for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert 0.01 < float(a.detach().std()) < 0.1


def test_decode(generator: torch.Generator) -> None:
    step, whole = decodes_as_forward("band(window=9)", "t5_bias(buckets=8, limit=6)", generator)
    assert_close(step, whole, "decode")


@pytest.mark.parametrize("options", ["buckets=2", "buckets=7", "buckets=32, limit=16"])
def test_bad_options_are_refused(options: str) -> None:
    with pytest.raises(mf.MapformersError, match=r"t5_bias: .*; use"):
        mf.score(f"t5_bias({options})", 2, 8)
