"""reformer: by hand, counts one by one, the published chunks, rounds that may be changed, the hash."""

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.core.mechanism import Mechanism, Shape
from mapformers.kernels.native.library import load
from mapformers.mechanisms.content.lsh import antipodal, buckets_of, defined_buckets
from tests.contract import cases
from tests.mechanisms.test_by_hand import H, Q, T, weights_by_probing
from tests.tolerances import assert_close

N = 23
LEAKY = "ignore:reformer. allow_selection_leak:UserWarning"


def by_signs(rounds: list[list[int]], **options: object) -> Mechanism:
    """Two buckets in every round: whether the coordinate that the round names is positive."""
    made = mf.mechanism("reformer", buckets=2, rounds=len(rounds), **options).bind(Shape(1, 1, 2)).double()
    made.rotations.copy_(torch.tensor(rounds)[None, :, None])
    return made


def tokens(*signs: tuple[int, int]) -> Tensor:
    """Tokens so short that all scores are equal to 1e-16."""
    return 1e-9 * torch.tensor(signs, dtype=torch.float64)[None, None]


def assert_shown(made: Mechanism, x: Tensor, causal: bool, rows: list[list[float]]) -> None:
    expected = torch.tensor(rows, dtype=torch.float64)
    assert_close(weights_by_probing(made, x, x, causal), expected, "parity", "plan")
    assert_close(mf.dense_weights(made, x, x, causal=causal)[0, 0], expected, "parity", "definition")


def test_by_hand() -> None:
    """Tokens 0, 1, 3 share a bucket; nobody sees itself but token 2, and the first one when causal."""
    x = tokens((1, 1), (1, 1), (-1, 1), (1, 1))
    causal = [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [H, H, 0, 0]]
    both = [[0, H, 0, H], [H, 0, 0, H], [0, 0, 1, 0], [H, H, 0, 0]]
    assert_shown(by_signs([[1, 0]], window=2), x, True, causal)
    assert_shown(by_signs([[1, 0]], window=2), x, False, both)
    narrow = [[0, 1, 0, 0], [H, 0, 0, H], [0, 0, 1, 0], [0, 1, 0, 0]]
    assert_shown(by_signs([[1, 0]], window=1), x, False, narrow)


def test_rounds_count_by_hand() -> None:
    """The last token shares both buckets with the first, and one with each of the others."""
    x = tokens((1, 1), (1, -1), (-1, 1), (1, 1))
    rows = [[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [H, Q, Q, 0]]
    assert_shown(by_signs([[1, 0], [0, 1]], window=3), x, True, rows)


def test_chunks_by_hand() -> None:
    """Sorted 0 2 1 3, chunks of one token that look one back; the first one looks at the last."""
    x = tokens((1, 1), (-1, 1), (1, 1), (-1, 1))
    one = [[0, 0, 0, 1], [0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0]]
    assert_shown(by_signs([[1, 0]], variant="paper", chunk=1), x, False, one)
    # The second round sorts 0 1 2 3, and its first token looks at the last of the first round.
    two = [[0, 0, 0, 1], [H, 0, H, 0], [H, H, 0, 0], [0, H, H, 0]]
    assert_shown(by_signs([[1, 0], [0, 1]], variant="paper", chunk=1), x, False, two)
    third = [[0, T, T, T], [T, 0, T, T], [T, T, 0, T], [T, T, T, 0]]
    assert_shown(by_signs([[1, 0]], variant="paper", chunk=2), x, False, third)


def hashes(made: Mechanism, k: Tensor) -> list[list[int]]:
    """Bucket of each token in each round, of the first row and head: argmax of [R k; -R k], as written."""
    found = []
    for rows in made.rotations[0]:
        along = k[0, 0] @ rows.T
        found.append(torch.cat([along, -along], -1).argmax(-1).tolist())
    return found


def softmax_of_counts(made: Mechanism, q: Tensor, k: Tensor, count: list[list[float]]) -> Tensor:
    """[N, N]: every exponential weighed by its count; the own key where a row is empty."""
    mass = torch.tensor(count, dtype=torch.float64)
    scores = q[0, 0] @ k[0, 0].T / q.shape[-1] ** 0.5
    mass = mass * (scores - scores.amax(-1, keepdim=True)).exp()
    total = mass.sum(-1, keepdim=True)
    return torch.where(total > 0, mass / total.clamp(min=1e-300), torch.eye(len(count)).double())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("buckets", "window", "rounds"), [(2, 3, 1), (4, 2, 4), (6, 40, 3), (8, 1, 2)])
def test_counts_one_by_one(
    buckets: int, window: int, rounds: int, causal: bool, generator: torch.Generator
) -> None:
    made = mf.mechanism("reformer", buckets=buckets, window=window, rounds=rounds)
    made = made.bind(Shape(1, 1, cases.HEAD_DIM), generator).double()
    q, k = (cases.draw((1, 1, N, cases.HEAD_DIM), generator) for _ in range(2))
    documents = [0] * 9 + [1] * (N - 9)
    count = [[0.0] * N for _ in range(N)]
    for bucket in hashes(made, k):
        for i in range(N):
            mates = [j for j in range(N) if bucket[j] == bucket[i] and documents[j] == documents[i]]
            past, ahead = [j for j in mates if j < i], [j for j in mates if j > i]
            for j in past[-window:] + ([] if causal else ahead[:window]):
                count[i][j] += 1
    expected = softmax_of_counts(made, q, k, count)
    scope = {"segments": torch.tensor([documents])}
    assert_close(weights_by_probing(made, q, k, causal, **scope), expected, "parity")
    assert_close(mf.dense_weights(made, q, k, causal=causal, **scope)[0, 0], expected, "parity")


@pytest.mark.filterwarnings(LEAKY)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("chunk", "rounds"), [(1, 1), (4, 3), (5, 2), (N - 1, 2), (N, 2), (40, 1)])
def test_the_published_form_is_dense_with_counts(
    chunk: int, rounds: int, causal: bool, generator: torch.Generator
) -> None:
    """Sorted, cut, one chunk back and around the end, without its own key, rounds added up."""
    made = mf.mechanism(
        "reformer", buckets=4, rounds=rounds, variant="paper", chunk=chunk, allow_selection_leak=True
    ).bind(Shape(1, 1, cases.HEAD_DIM), generator)
    made = made.double()
    q, k = (cases.draw((1, 1, N, cases.HEAD_DIM), generator) for _ in range(2))
    chunks: list[list[int]] = []
    for bucket in hashes(made, k):
        order = sorted(range(N), key=lambda j: (bucket[j], j))
        chunks += [order[start : start + chunk] for start in range(0, N, chunk)]
    count = [[0.0] * N for _ in range(N)]
    for place, own in enumerate(chunks):
        for i in own:
            for j in own + chunks[place - 1]:
                count[i][j] += j != i and (j < i or not causal)
    expected = softmax_of_counts(made, q, k, count)
    assert_close(weights_by_probing(made, q, k, causal), expected, "parity")
    assert_close(mf.dense_weights(made, q, k, causal=causal)[0, 0], expected, "parity")


@pytest.mark.filterwarnings(LEAKY)
def test_the_published_form_leaks_and_the_strict_one_does_not(generator: torch.Generator) -> None:
    """Only the last token changes; the chunks of earlier ones move."""
    q, k, v = cases.draw_qkv(70, generator)
    other = k.clone()
    other[:, :, -1] *= -1
    for options, leaks in (
        ({"variant": "paper", "chunk": 5, "allow_selection_leak": True}, True),
        ({"window": 5}, False),
    ):
        made = mf.mechanism("reformer", buckets=4, **options).bind(Shape(4, 4, 8), generator).double()
        moved = mf.attend(made, q, other, v, causal=True) - mf.attend(made, q, k, v, causal=True)
        assert bool((moved[:, :, :-1].abs() > 1e-6).any()) == leaks


def test_the_leak_must_be_asked_for() -> None:
    with pytest.raises(mf.MapformersError, match=r"reformer: variant=\"paper\" leaks the future.*; use"):
        mf.attention("reformer(variant=paper)", 32, 4, causal=True)
    with pytest.warns(UserWarning, match="reformer: allow_selection_leak=True"):
        layer = mf.attention("reformer(variant=paper, allow_selection_leak=true)", 32, 4, causal=True)
    with pytest.raises(mf.MapformersError, match="reformer: cannot decode"):
        layer.init_state(1)


def test_a_token_sees_itself_only_if_it_sees_nothing_else(generator: torch.Generator) -> None:
    """However well its own key fits: its score is up to 44,000 here."""
    made = mf.mechanism("reformer", buckets=2, window=3).bind(Shape(1, 1, 2), generator).double()
    made.rotations.copy_(torch.tensor([1.0, 0.0]).view(1, 1, 1, 2))
    k = torch.tensor([[1.0, 1e-3], [1.0, 200.0], [-1.0, 1.0], [1.0, 250.0]]).double()[None, None]
    got = weights_by_probing(made, k, k, True)
    assert_close(got.diagonal(), torch.tensor([1.0, 0, 1, 0]).double(), "parity")


@pytest.mark.parametrize("kind", ["random", "clustered", "duplicated", "zeros"])
@pytest.mark.parametrize("buckets", [2, 6, 20])
def test_the_hash_is_its_definition_whatever_the_scale(
    buckets: int, kind: str, generator: torch.Generator
) -> None:
    made = mf.mechanism("reformer", buckets=buckets, rounds=3).bind(Shape(4, 4, 8), generator).double()
    x = cases.draw((2, 4, 40, 8), generator, kind)
    found = buckets_of(x, made.rotations)
    assert found.shape == (2, 4, 40, 3)
    assert torch.equal(found, defined_buckets(x, made.rotations))
    assert torch.equal(found, buckets_of(1e-6 * x, made.rotations))
    assert 0 <= int(found.min()) <= int(found.max()) < buckets
    if kind == "random":
        assert not bool((found == buckets_of(-x, made.rotations)).any()), "opposites share a bucket"


def test_near_directions_share_a_bucket_more_often(generator: torch.Generator) -> None:
    made = mf.mechanism("reformer", buckets=8, rounds=2000).bind(Shape(1, 1, 8), generator).double()
    x, y = cases.draw((2, 8), generator)
    x, y = x / x.norm(), y - (y @ x) / (x @ x) * x
    y = y / y.norm()
    shares = []
    for cosine in (1.0, 0.9, 0.5, 0.0, -1.0):
        pair = torch.stack([x, cosine * x + (1 - cosine**2) ** 0.5 * y])[None, None]
        one, other = buckets_of(pair, made.rotations)[0, 0]
        shares.append(float((one == other).double().mean()))
    assert shares == sorted(shares, reverse=True), shares
    assert shares[0] == 1
    assert shares[-1] == 0


def test_antipodal() -> None:
    assert antipodal(torch.tensor([[1.0, 2.0]])).tolist() == [[1.0, 2.0], [-1.0, -2.0]]


def test_rounds_may_change_and_the_first_ones_stay(generator: torch.Generator) -> None:
    def built(rounds: int) -> Mechanism:
        made = mf.mechanism("reformer", buckets=4, window=5, rounds=rounds)
        return made.bind(Shape(4, 2, 8), torch.Generator().manual_seed(3)).double()

    few, many = built(2), built(7)
    assert torch.equal(many.rotations[:, :2], few.rotations)
    assert not torch.equal(many.rotations[:, 0], many.rotations[:, 1])
    q, k, v = cases.draw_qkv(N, generator, kv_heads=2)
    for rounds in (7, 2, 3, 7):
        few.set_rounds(rounds)
        assert few.config.rounds == rounds
        expected = mf.attend(built(rounds), q, k, v, causal=True)
        assert_close(mf.attend(few, q, k, v, causal=True), expected, "rounding", str(rounds))
    many.load_state_dict(few.state_dict())
    with pytest.raises(mf.MapformersError, match="reformer: rounds must be 1 or more, got 0"):
        few.set_rounds(0)


def test_rounds_set_before_the_sizes_are_known() -> None:
    made = mf.mechanism("reformer", buckets=4, rounds=2)
    made.set_rounds(5)
    assert made.bind(Shape(2, 2, 8)).rotations.shape == (2, 5, 2, 8)


@pytest.mark.parametrize("causal", [False, True])
def test_the_strict_form_runs_on_the_native_kernel(causal: bool, generator: torch.Generator) -> None:
    if load().library is None:
        pytest.skip(f"no native kernel: {load().reason}")
    layer = mf.attention("reformer(buckets=4, window=5, rounds=3)", 32, 4, causal=causal, project="shared_qk")
    assert layer.attend(torch.randn(2, 40, 32, generator=generator)).kernels == ("native",)


@pytest.mark.parametrize("n", [1, 17, 40])
def test_the_cost_of_the_published_form_is_a_bound(n: int, generator: torch.Generator) -> None:
    text = "reformer(buckets=4, variant=paper, chunk=6, rounds=2)"
    q, k, _ = cases.draw_qkv(n, generator, batch=1)
    made = cases.bound(text, generator)
    shown = int((mf.dense_weights(made, q, k) != 0).sum())
    assert made.cost(1, cases.HEADS, n, cases.HEAD_DIM, False).flops >= 4 * cases.HEAD_DIM * shown


def test_the_audit_passes(generator: torch.Generator) -> None:
    text = "reformer(buckets=4, window=5, rounds=2):2 + reformer(buckets=6, window=3):2"
    layer = mf.attention(text, cases.DIM, cases.HEADS, causal=True, rotary=True, project="shared_qk")
    report = mf.audit(layer.double(), causal=True, length=24)
    assert report.passed, str(report)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buckets": 3}, "buckets must be even and 2 or more, got 3; use 16"),
        ({"buckets": 0}, "buckets must be even and 2 or more, got 0"),
        ({"window": 0}, "window must be 1 or more, got 0"),
        ({"rounds": -1}, "rounds must be 1 or more, got -1"),
        ({"chunk": 0}, "chunk must be 1 or more, got 0"),
        ({"variant": "papr"}, "variant must be one of"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(mf.MapformersError, match=f"reformer: {message}"):
        mf.mechanism("reformer", **options)


def test_the_published_form_refuses_packed_documents(generator: torch.Generator) -> None:
    q, k, v = cases.draw_qkv(9, generator)
    made = mf.mechanism("reformer", variant="paper")
    with pytest.raises(mf.MapformersError, match=r"reformer: .* got segments; use variant"):
        mf.attend(made, q, k, v, segments=torch.zeros(2, 9, dtype=torch.long))
