"""sparse_transformer: by hand, by the formula over ranks, reach in two layers, head schemes, decoding."""

import pytest
import torch
from torch import Tensor, nn

import mapformers as mf
from mapformers.core.mechanism import Mechanism
from mapformers.core.scope import ranks_among_real
from tests.contract import cases
from tests.mechanisms.test_by_hand import H, Q, T, assert_rows
from tests.tolerances import assert_close

N = 61


def sparse(**options: object) -> Mechanism:
    return mf.mechanism("sparse_transformer", **options)


def shown(made: Mechanism, n: int, **scope: Tensor) -> Tensor:
    """[B, N, N] bool, the pairs that the fast path lets through: values are unit vectors."""
    batch = max([1, *(x.shape[0] for x in scope.values())])
    q = torch.zeros(batch, 1, n, 2, dtype=torch.float64)
    values = torch.eye(n, dtype=torch.float64).expand(batch, 1, -1, -1)
    return mf.attend(made, q, q, values, causal=True, **scope)[:, 0] > 0


def defined(n: int, **options: object) -> Tensor:
    """[N, N] bool of the definition."""
    q = torch.zeros(1, 1, n, 2, dtype=torch.float64)
    return mf.dense_weights(sparse(**options), q, q, causal=True)[0, 0] > 0


def test_strided_by_hand() -> None:
    assert_rows(
        sparse(stride=2, part="local"), True, [[1, 0, 0, 0], [H, H, 0, 0], [T, T, T, 0], [0, T, T, T]]
    )
    assert_rows(
        sparse(stride=2, part="summary"), True, [[1, 0, 0, 0], [0, 1, 0, 0], [H, 0, H, 0], [0, H, 0, H]]
    )
    assert_rows(sparse(stride=1), True, [[1, 0, 0, 0], [H, H, 0, 0], [T, T, T, 0], [Q] * 4])
    assert shown(sparse(stride=2), 6)[0, 5].tolist() == [False, True, False, True, True, True]


def test_fixed_by_hand() -> None:
    """Blocks of two, the second token of each is the summary."""
    fixed = {"pattern": "fixed", "stride": 2, "summary": 1}
    assert_rows(sparse(**fixed, part="local"), True, [[1, 0, 0, 0], [H, H, 0, 0], [0, 0, 1, 0], [0, 0, H, H]])
    assert_rows(
        sparse(**fixed, part="summary"), True, [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, H, 0, H]]
    )
    assert_rows(sparse(**fixed), True, [[1, 0, 0, 0], [H, H, 0, 0], [0, H, H, 0], [0, T, T, T]])


@pytest.mark.parametrize("part", ["both", "local", "summary"])
@pytest.mark.parametrize(("stride", "summary"), [(1, 1), (2, 1), (5, 2), (7, 7), (16, 3), (70, 9)])
def test_the_formula_over_ranks(stride: int, summary: int, part: str) -> None:
    real = cases.mask("holes", N, torch.Generator().manual_seed(1))
    rank = ranks_among_real(real)
    i, j = rank[:, :, None], rank[:, None, :]
    pair = real[:, :, None] & real[:, None, :] & (j <= i)
    strided = {"local": (i - j) <= stride, "summary": (i - j) % stride == 0}
    fixed = {"local": i // stride == j // stride, "summary": j % stride >= stride - summary}
    for pattern, parts in (("strided", strided), ("fixed", fixed)):
        expected = pair & (parts["local"] | parts["summary"] if part == "both" else parts[part])
        got = shown(sparse(pattern=pattern, stride=stride, summary=summary, part=part), N, key_is_real=real)
        assert torch.equal(got & real[:, :, None], expected), pattern


def test_a_key_in_both_parts_counts_once(generator: torch.Generator) -> None:
    """Where the parts cover everything, what is left is causal attention."""
    q, k, v = cases.draw_qkv(N, generator)
    expected = mf.attend(mf.mechanism("full"), q, k, v, causal=True)
    for options in (
        {"stride": 1},
        {"stride": 100},
        {"pattern": "fixed", "stride": 6, "summary": 6},
        {"pattern": "fixed", "stride": 100},
    ):
        assert_close(mf.attend(sparse(**options), q, k, v, causal=True), expected, "parity", str(options))


def test_the_summary_of_strided_is_the_column_of_a_grid(generator: torch.Generator) -> None:
    q, k, v = cases.draw_qkv(N, generator)
    column = mf.mechanism("axial", axis="column", width=7)
    got = mf.attend(sparse(stride=7, part="summary"), q, k, v, causal=True)
    assert_close(got, mf.attend(column, q, k, v, causal=True), "rounding")


@pytest.mark.parametrize(
    ("pattern", "order", "percent"),
    [
        ("fixed", ("local", "summary"), 95),
        ("fixed", ("summary", "local"), 12),
        ("strided", ("local", "summary"), 100),
        ("strided", ("summary", "local"), 100),
    ],
)
def test_reach_of_two_layers(pattern: str, order: tuple[str, str], percent: int) -> None:
    """How many pairs of the lower triangle two layers join: fixed needs the local one first."""
    n = 256
    below, above = (defined(n, pattern=pattern, stride=16, summary=2, part=part).double() for part in order)
    joined = (above @ below > 0).sum() / (n * (n + 1) / 2)
    assert round(100 * float(joined)) == percent
    assert (percent == 100) == (joined == 1)


def support(layer: nn.Module, n: int, generator: torch.Generator) -> Tensor:
    """[N, N] bool: on which inputs an output depends."""
    x = cases.draw((1, n, cases.DIM), generator).requires_grad_()
    y = layer(x)
    rows = [torch.autograd.grad(y[0, i].sum(), x, retain_graph=True)[0][0].any(-1) for i in range(n)]
    return torch.stack(rows)


def test_interleaved_layers_reach_what_the_patterns_say(generator: torch.Generator) -> None:
    fixed = {"pattern": "fixed", "stride": 6, "summary": 2}
    layers = [
        mf.attention(sparse(**fixed, part=part), cases.DIM, cases.HEADS, causal=True, seed=seed).double()
        for seed, part in enumerate(("local", "summary"))
    ]
    below, above = (defined(40, **fixed, part=part) for part in ("local", "summary"))
    seen = above.any(-1, keepdim=True)  # a row that sees nothing is zero, and so are its gradients
    wanted = above | (torch.eye(40).bool() & seen)  # the query itself
    expected = wanted.double() @ below.double() > 0
    assert torch.equal(support(nn.Sequential(*layers), 40, generator), expected)


def test_heads_of_their_own_are_a_mixture(generator: torch.Generator) -> None:
    text = "sparse_transformer(stride=6, part=local):2 + sparse_transformer(stride=6, part=summary):2"
    layer = mf.attention(text, cases.DIM, cases.HEADS, causal=True).double()
    x = cases.draw((1, 40, cases.DIM), generator)
    weights = [
        mf.dense_weights(mechanism, *(y[:, heads] for y in layer.project(x, x)[:2]), causal=True)
        for mechanism, heads in zip(layer.mechanisms, (slice(0, 2), slice(2, 4)), strict=True)
    ]
    expected = layer.merge(torch.cat(weights, 1) @ layer.project(x, x)[2])
    assert_close(layer(x), expected, "parity")
    union = torch.cat(weights, 1)[0].amax(0) > 0
    assert torch.equal(union, defined(40, stride=6)), "the two kinds of heads see what the merged head sees"


@pytest.mark.parametrize("chunks", [[1] * 100, [100], [33, 1, 66]], ids=str)
def test_decode_keeps_the_near_keys_and_the_summaries(chunks: list[int], generator: torch.Generator) -> None:
    """Strided: stride + 1 near keys and all keys by residue; fixed: one block and the summaries."""
    x = cases.draw((1, 100, cases.DIM), generator)
    for options, near, far in (
        ({"stride": 7}, 8, [15, 15, 14, 14, 14, 14, 14]),
        ({"pattern": "fixed", "stride": 8, "summary": 3}, 8, [12 * 3]),
    ):
        layer = mf.attention(sparse(**options), cases.DIM, cases.HEADS, causal=True).double()
        state, outputs = layer.init_state(1), []
        for part in x.split(chunks, 1):
            y, state = layer.step(part, state)
            outputs.append(y)
        assert_close(torch.cat(outputs, 1), layer(x), "decode")
        local, summary = state.parts[0].parts
        assert (local.window, local.owner.shape[-1]) == (near, 1)
        assert summary.count[0, 0].tolist() == far


def test_bidirectional_use_is_refused() -> None:
    with pytest.raises(mf.MapformersError, match="sparse_transformer: bidirectional is not supported"):
        mf.attention("sparse_transformer", cases.DIM, cases.HEADS)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"stride": 0}, "stride"),
        ({"pattern": "fixed", "summary": 0}, "summary"),
        ({"pattern": "fixed", "stride": 4, "summary": 5}, "summary"),
        ({"pattern": "fixd"}, "pattern"),
        ({"part": "all"}, "part"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, object], word: str) -> None:
    with pytest.raises(mf.MapformersError, match=f"sparse_transformer: {word} .*, got .*; "):
        sparse(**options)
