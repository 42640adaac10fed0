"""global_tokens, dilated, strided and random: by hand, by their formulas over ranks, and what is special."""

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.core.mechanism import Mechanism, Shape
from mapformers.core.scope import ranks_among_real
from tests.contract import cases
from tests.mechanisms.test_by_hand import H, Q, T, assert_rows
from tests.tolerances import assert_close

N = 61


def shown(mechanism: Mechanism, n: int, causal: bool, heads: int = 1, **scope: Tensor) -> Tensor:
    """[B, H, N, M] bool, the pairs that the fast path lets through: values are unit vectors."""
    batch = max([1, *(x.shape[0] for x in scope.values())])
    q = torch.zeros(batch, heads, n, 2, dtype=torch.float64)
    values = torch.eye(n, dtype=torch.float64).expand(batch, heads, -1, -1)
    return mf.attend(mechanism, q, q, values, causal=causal, **scope) > 0


def random(count: int, block: int, heads: int = 1, seed: int = 0) -> Mechanism:
    made = mf.mechanism("random", count=count, block=block)
    return made.bind(Shape(heads, heads, 2), torch.Generator().manual_seed(seed))


def test_global_tokens_by_hand() -> None:
    made = mf.mechanism("global_tokens", count=1)
    assert_rows(made, True, [[1, 0, 0, 0]] * 4)
    assert_rows(made, False, [[Q] * 4, [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]])
    two = mf.mechanism("global_tokens", count=2)
    assert_rows(two, True, [[1, 0, 0, 0], [H, H, 0, 0], [H, H, 0, 0], [H, H, 0, 0]])
    assert_rows(two, False, [[Q] * 4, [Q] * 4, [H, H, 0, 0], [H, H, 0, 0]])


def test_global_tokens_are_the_first_real_ones_of_each_document() -> None:
    """Padding comes first; the documents start at tokens 1 and 4."""
    scope = {
        "key_is_real": torch.tensor([[False, True, True, True, True, True]]),
        "segments": torch.tensor([[0, 0, 0, 0, 1, 1]]),
    }
    got = shown(mf.mechanism("global_tokens", count=1), 6, False, **scope)[0, 0, 1:]
    rows = [
        [0, 1, 1, 1, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 1, 0],
    ]
    assert torch.equal(got, torch.tensor(rows).bool())


def test_dilated_by_hand() -> None:
    made = mf.mechanism("dilated", window=1, dilation=2)
    assert_rows(made, True, [[1, 0, 0, 0], [0, 1, 0, 0], [H, 0, H, 0], [0, H, 0, H]])
    assert_rows(made, False, [[H, 0, H, 0], [0, H, 0, H], [H, 0, H, 0], [0, H, 0, H]])


@pytest.mark.parametrize("causal", [False, True])
def test_dilation_one_is_the_band(causal: bool, generator: torch.Generator) -> None:
    q, k, v = cases.draw_qkv(N, generator)
    scope = cases.scope_arguments("packed", N, generator)
    band, dilated = mf.mechanism("band", window=5), mf.mechanism("dilated", window=5, dilation=1)
    expected = mf.attend(band, q, k, v, causal=causal, **scope)
    assert_close(mf.attend(dilated, q, k, v, causal=causal, **scope), expected, "rounding")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("window", "dilation"), [(3, 2), (4, 5), (0, 3), (2, 40), (90, 3)])
def test_dilated_is_its_formula_over_ranks(window: int, dilation: int, causal: bool) -> None:
    real = cases.mask("holes", N, torch.Generator().manual_seed(1))
    rank = ranks_among_real(real)
    step = rank[:, None, :, None] - rank[:, None, None, :]  # [B, 1, N, M]
    pair = real[:, None, :, None] & real[:, None, None, :]
    expected = (step.abs() <= window * dilation) & (step % dilation == 0) & pair
    expected &= (step >= 0) | (not causal)
    got = shown(mf.mechanism("dilated", window=window, dilation=dilation), N, causal, key_is_real=real)
    assert torch.equal(got & real[:, None, :, None], expected)


def test_strided_by_hand() -> None:
    made = mf.mechanism("strided", stride=2)
    assert_rows(made, True, [[1, 0, 0, 0], [0, 1, 0, 0], [H, 0, H, 0], [0, H, 0, H]])
    assert_rows(made, False, [[H, 0, H, 0], [0, H, 0, H]] * 2)
    assert_rows(mf.mechanism("strided", stride=9), False, torch.eye(4).tolist())


def test_stride_one_is_full_attention(generator: torch.Generator) -> None:
    q, k, v = cases.draw_qkv(N, generator)
    for causal in (False, True):
        expected = mf.attend(mf.mechanism("full"), q, k, v, causal=causal)
        got = mf.attend(mf.mechanism("strided", stride=1), q, k, v, causal=causal)
        assert_close(got, expected, "parity")


def test_strided_is_dilated_without_an_end(generator: torch.Generator) -> None:
    q, k, v = cases.draw_qkv(N, generator)
    for causal in (False, True):
        expected = mf.attend(mf.mechanism("dilated", window=N, dilation=7), q, k, v, causal=causal)
        got = mf.attend(mf.mechanism("strided", stride=7), q, k, v, causal=causal)
        assert_close(got, expected, "rounding")


def test_random_by_hand() -> None:
    """As many blocks as there are: everything. One block of two: which one, the seed says."""
    assert_rows(random(2, 2), False, [[Q] * 4] * 4)
    assert_rows(random(2, 2), True, [[1, 0, 0, 0], [H, H, 0, 0], [T, T, T, 0], [Q] * 4])
    for seed in range(9):
        drawn = random(1, 2, seed=seed).drawn(1, torch.tensor([[0, 1]]), torch.tensor([[2, 2]]))[0, 0, :, 0]
        rows = [[H, H, 0, 0], [0, 0, H, H]]
        first, second = (rows[int(block)] for block in drawn)
        assert_rows(random(1, 2, seed=seed), False, [first, first, second, second])


def test_random_pattern_holds_the_right_number_of_whole_blocks() -> None:
    made, block = random(3, 4, heads=4), 4
    for causal in (False, True):
        got = shown(made, 60, causal, heads=4)[0]
        blocks = got.unflatten(2, (15, block)).any(-1)  # [H, N, blocks]
        number = torch.arange(60) // block
        most = torch.minimum(number + 1, torch.tensor(3)) if causal else torch.tensor(3)
        assert (blocks.sum(-1) == most).all()
        whole = blocks.repeat_interleave(block, -1)
        assert torch.equal(got, whole & torch.ones(60, 60).tril().bool() if causal else whole)
        assert (blocks[:, ::block] == blocks[:, block - 1 :: block]).all(), (
            "a block of queries shares its blocks"
        )
        assert not torch.equal(blocks[0], blocks[1]), "heads have patterns of their own"


@pytest.mark.parametrize("block", [1, 5])
def test_a_prefix_keeps_its_random_pattern(block: int) -> None:
    made = random(3, block, heads=2)
    whole = shown(made, N, True, heads=2)
    for n in (1, 7, 40):
        assert torch.equal(shown(made, n, True, heads=2), whole[:, :, :n, :n])


@pytest.mark.parametrize("causal", [False, True])
def test_random_blocks_are_uniform_over_the_document(causal: bool) -> None:
    """Over 4000 heads, the last block of ten sees each block 1200 times, give or take four deviations."""
    made = random(3, 1, heads=4000)
    drawn = made.drawn(4000, torch.tensor([[9]]), torch.tensor([[10]]))[0, :, 0]  # [H, 3]
    counts = drawn.flatten().bincount(minlength=10)
    deviation = (4000 * 0.3 * 0.7) ** 0.5
    assert (counts - 1200).abs().max() < 4 * deviation
    seen = shown(made, 10, causal, heads=4000)[0, :, 9].sum(0)
    assert torch.equal(seen, counts)


def test_random_is_the_same_in_training_and_evaluation_and_after_reload() -> None:
    layer = mf.attention("random(count=2, block=3)", 32, 4, causal=True)
    x = cases.draw((1, N, 32), torch.Generator().manual_seed(0)).float()
    y = layer.train()(x)
    assert torch.equal(layer.eval()(x), y)
    other = mf.attention("random(count=2, block=3)", 32, 4, causal=True, seed=1)
    weights = {name: tensor for name, tensor in layer.state_dict().items() if not name.endswith("seed")}
    other.load_state_dict(weights, strict=False)
    assert not torch.equal(other(x), y), "the seed must matter"
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), y)


def test_layers_draw_different_patterns() -> None:
    layers = mf.attention("random(count=2, block=3):2 + random(count=2, block=3):2", 32, 4).mechanisms
    assert layers[0].seed != layers[1].seed


def test_grouped_heads_equal_repeated_heads(generator: torch.Generator) -> None:
    """Patterns belong to query heads, so sharing keys does not change them."""
    q, k, v = cases.draw_qkv(40, generator, kv_heads=2)
    for text in ("random(count=2, block=6)", "bigbird(block=4, random=2)"):
        grouped, repeated = cases.fresh(text, 2), cases.fresh(text)
        few = mf.attend(grouped, q, k, v)
        many = mf.attend(repeated, q, *(x.repeat_interleave(2, 1) for x in (k, v)))
        assert_close(few, many, "rounding", text)


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("global_tokens", {"count": 0}, "count"),
        ("dilated", {"window": -1}, "window"),
        ("dilated", {"dilation": 0}, "dilation"),
        ("strided", {"stride": 0}, "stride"),
        ("random", {"count": 0}, "count"),
        ("random", {"block": 0}, "block"),
    ],
)
def test_bad_options_are_refused_by_name(name: str, options: dict[str, int], word: str) -> None:
    with pytest.raises(mf.MapformersError, match=f"{name}: {word} must be .*, got .*; "):
        mf.mechanism(name, **options)
