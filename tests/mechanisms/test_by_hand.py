"""Four tokens, worked out with a pencil: which keys each query sees, and with which weight.

Keys are zero unless said otherwise, so that every visible key weighs the same and a row reads as a fraction.
"""

import math

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.core.mechanism import Mechanism, Shape

N = 4
Rows = list[list[float]]
H, T, Q, F = 1 / 2, 1 / 3, 1 / 4, 1 / 5  # half, third, quarter, fifth


def weights_by_probing(mechanism: Mechanism, q: Tensor, k: Tensor, causal: bool, **scope: Tensor) -> Tensor:
    """[N, M] what the fast path really does: the values are unit vectors, so the outputs are the weights."""
    values = torch.eye(k.shape[2], dtype=q.dtype)[None, None]
    return mf.attend(mechanism, q, k, values, causal=causal, **scope)[0, 0]


def assert_rows(mechanism: Mechanism, causal: bool, rows: Rows, **scope: Tensor) -> None:
    q, k = torch.randn(1, 1, N, 2, dtype=torch.float64, generator=torch.Generator()), torch.zeros(1, 1, N, 2)
    k = k.double()
    expected = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(weights_by_probing(mechanism, q, k, causal, **scope), expected)
    torch.testing.assert_close(mf.dense_weights(mechanism, q, k, causal=causal, **scope)[0, 0], expected)


def test_full() -> None:
    assert_rows(mf.mechanism("full"), False, [[Q] * 4] * 4)
    assert_rows(mf.mechanism("full"), True, [[1, 0, 0, 0], [H, H, 0, 0], [T, T, T, 0], [Q] * 4])


def test_full_by_its_scores() -> None:
    """Scores ln 1, ln 2, ln 3, ln 4 after division by sqrt(4): weights 1/10, 2/10, 3/10, 4/10."""
    k = torch.zeros(1, 1, N, 4, dtype=torch.float64)
    k[0, 0, :, 0] = torch.log(torch.tensor([1.0, 2, 3, 4]).double())
    q = torch.zeros_like(k)
    q[..., 0] = 2
    got = weights_by_probing(mf.mechanism("full"), q, k, False)
    torch.testing.assert_close(got, torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 4).double())


def test_band() -> None:
    band = mf.mechanism("band", window=1)
    assert_rows(band, True, [[1, 0, 0, 0], [H, H, 0, 0], [0, H, H, 0], [0, 0, H, H]])
    assert_rows(band, False, [[H, H, 0, 0], [T, T, T, 0], [0, T, T, T], [0, 0, H, H]])
    assert_rows(mf.mechanism("band", window=0), True, torch.eye(4).tolist())


def test_band_steps_over_padding() -> None:
    """Token 1 is padding: token 2 sees itself and token 0."""
    real = torch.tensor([[True, False, True, True]])
    rows = [[1, 0, 0, 0], [1, 0, 0, 0], [H, 0, H, 0], [0, 0, H, H]]
    got = weights_by_probing(mf.mechanism("band", window=1), *zeros(), True, key_is_real=real)
    torch.testing.assert_close(got[[0, 2, 3]], torch.tensor(rows).double()[[0, 2, 3]])


def test_block_local() -> None:
    local = mf.mechanism("block_local", block=3)
    assert_rows(local, True, [[1, 0, 0, 0], [H, H, 0, 0], [T, T, T, 0], [0, 0, 0, 1]])
    assert_rows(local, False, [[T, T, T, 0]] * 3 + [[0, 0, 0, 1]])


def test_block_local_is_not_shifted_by_left_padding() -> None:
    """One pad, then a block of 2: without true positions the border would lie elsewhere."""
    real = torch.tensor([[False, True, True, True]])
    got = weights_by_probing(mf.mechanism("block_local", block=2), *zeros(), True, key_is_real=real)
    torch.testing.assert_close(got[1:], torch.tensor([[0, 1, 0, 0], [0, H, H, 0], [0, 0, 0, 1]]).double())


def test_packed_documents() -> None:
    segments = torch.tensor([[0, 0, 1, 1]])
    assert_rows(
        mf.mechanism("full"),
        True,
        [[1, 0, 0, 0], [H, H, 0, 0], [0, 0, 1, 0], [0, 0, H, H]],
        segments=segments,
    )


def test_linear() -> None:
    """phi(x) = elu(x) + 1: phi(0) = 1, phi(1) = 2, phi(-ln 2) = 1/2. One feature, q = 0."""
    k = torch.tensor([0.0, 1.0, -math.log(2), 0.0]).double().view(1, 1, N, 1)
    q = torch.zeros_like(k)
    expected = torch.tensor(
        [[1, 0, 0, 0], [1 / 3, 2 / 3, 0, 0], [2 / 7, 4 / 7, 1 / 7, 0], [2 / 9, 4 / 9, 1 / 9, 2 / 9]]
    ).double()
    linear = mf.mechanism("linear")
    torch.testing.assert_close(weights_by_probing(linear, q, k, True), expected)
    torch.testing.assert_close(weights_by_probing(linear, q, k, False), expected[3:].expand(4, 4))


def test_linformer() -> None:
    """Rank 1: one compressed key, so its softmax is 1 and the weights are the row F, whatever q and k."""
    linformer = mf.mechanism("linformer", rank=1, length=N).bind(Shape(1, 1, 2)).double()
    row = torch.tensor([0.5, -1.0, 2.0, 0.25]).double()
    with torch.no_grad():
        linformer.value_projection.copy_(row.view(1, 1, N))
    assert_rows(linformer, False, [row.tolist()] * 4)


def routing(**options: object) -> Mechanism:
    """Two clusters of vectors with mean zero: centroid 0 points to (1, -1), centroid 1 to (-1, 1)."""
    made = mf.mechanism("routing", **{"clusters": 2, "window": 2, "query_clusters": 1, **options})
    made = made.bind(Shape(1, 1, 2)).double()
    made.kmeans.centroids.copy_(torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]]) / 2**0.5)
    return made


def sided(*signs: int) -> Tensor:
    """Tokens of cluster 0 (+1) and of cluster 1 (-1), so short that all scores are equal to 1e-16."""
    side = torch.tensor(signs, dtype=torch.float64).view(1, 1, N, 1) * torch.tensor([1.0, -1.0]).double()
    return 1e-9 * side


def test_routing() -> None:
    """Keys of cluster 0 are tokens 0, 1, 3; of cluster 1 token 2. The null key takes one more share."""
    k, q = sided(1, 1, -1, 1), sided(1, -1, -1, 1)
    causal = [[H, 0, 0, 0], [0, 0, 0, 0], [0, 0, H, 0], [0, T, 0, T]]
    both = [[Q, Q, 0, Q], [0, 0, H, 0], [0, 0, H, 0], [0, T, 0, T]]
    for mechanism_causal, rows in ((True, causal), (False, both)):
        got = weights_by_probing(routing(), q, k, mechanism_causal)
        torch.testing.assert_close(got, torch.tensor(rows).double())
        twin = mf.dense_weights(routing(), q, k, causal=mechanism_causal)[0, 0]
        torch.testing.assert_close(twin, torch.tensor(rows).double())


def test_routing_into_both_clusters() -> None:
    """The last 2 keys of cluster 0 (tokens 1, 3), those of cluster 1 (token 2), and the null key."""
    got = weights_by_probing(routing(query_clusters=2), sided(1, 1, 1, 1), sided(1, 1, -1, 1), True)
    rows = [[H, 0, 0, 0], [T, T, 0, 0], [Q, Q, Q, 0], [0, Q, Q, Q]]
    torch.testing.assert_close(got, torch.tensor(rows).double())


def test_the_null_key_of_routing() -> None:
    """A null key whose score is ln 3 takes three shares of four, and gives the value zero."""
    made = routing()
    q = torch.tensor([1.0, -1.0]).double().expand(1, 1, N, 2)
    k = 1e-9 * q
    with torch.no_grad():
        made.null_key.copy_(math.log(3) * 2**0.5 * torch.tensor([[1.0, 0.0]]))
    got = weights_by_probing(made, q, k, True)
    torch.testing.assert_close(got[0], torch.tensor([Q, 0, 0, 0]).double())
    torch.testing.assert_close(got[1], torch.tensor([F, F, 0, 0]).double())


def test_ties_go_to_the_first_cluster() -> None:
    """The zero vector is as near to one centroid as to the other."""
    zero = torch.zeros(1, 1, N, 2, dtype=torch.float64)
    got = weights_by_probing(routing(), sided(1, 1, -1, -1), zero, True)
    rows = [[H, 0, 0, 0], [T, T, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(got, torch.tensor(rows).double())
    torch.testing.assert_close(
        mf.dense_weights(routing(), sided(1, 1, -1, -1), zero, causal=True)[0, 0], torch.tensor(rows).double()
    )


def test_the_published_routing() -> None:
    """Each cluster takes its best 2 queries and keys of the sequence; there is no null key."""
    made = routing(membership="paper")
    k = q = torch.tensor([[9.0, -9], [8, -8.5], [-9, 9], [-8, 8.5]]).double().view(1, 1, N, 2)
    shown = weights_by_probing(made, q, k, False) > 0
    assert torch.equal(shown, mf.dense_weights(made, q, k)[0, 0] > 0)
    assert shown.sum(-1).tolist() == [2, 2, 2, 2]


def zeros() -> tuple[Tensor, Tensor]:
    return (torch.zeros(1, 1, N, 2, dtype=torch.float64),) * 2


@pytest.mark.parametrize("name", ["full", "band", "block_local", "linear"])
def test_one_token_sees_itself(name: str) -> None:
    one = torch.ones(1, 1, 1, 2, dtype=torch.float64)
    for causal in (False, True):
        assert weights_by_probing(mf.mechanism(name), one, one, causal).item() == 1
