"""BigBird: by hand, as a boolean mask in which nothing counts twice, and its random blocks."""

from typing import Any

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.core.mechanism import Mechanism, Shape
from mapformers.kernels.native.library import load
from tests.contract import cases
from tests.mechanisms.test_by_hand import H, Q, T, assert_rows
from tests.tolerances import assert_close


def bigbird(heads: int = 1, seed: int = 0, **options: Any) -> Mechanism:
    made = mf.mechanism("bigbird", **options)
    return made.bind(Shape(heads, heads, 2), torch.Generator().manual_seed(seed))


def weights(mechanism: Mechanism, n: int, heads: int = 1, **scope: Tensor) -> Tensor:
    """[H, N, M] of the fast path where all scores are equal: values are unit vectors."""
    q = torch.zeros(1, heads, n, 2, dtype=torch.float64)
    return mf.attend(mechanism, q, q, torch.eye(n).double().expand(1, heads, -1, -1), **scope)[0]


def fixed_part(n: int, block: int, half: int, first: int | None) -> Tensor:
    """[N, M] bool, pair by pair: globals and window. first = global tokens of etc, None = itc."""
    shown = torch.zeros(n, n, dtype=torch.bool)
    for i in range(n):
        for j in range(n):
            if first is None:
                last = (n - 1) // block
                seen = i // block in (0, last) or j // block in (0, last)
                seen |= abs(i // block - j // block) <= half
            else:
                seen = i < first or j < first or abs((i - first) // block - (j - first) // block) <= half
            shown[i, j] = seen
    return shown


def test_itc_by_hand() -> None:
    made = bigbird(block=1, random=0, window=1)
    assert_rows(made, False, [[Q] * 4, [T, T, 0, T], [T, 0, T, T], [Q] * 4])
    assert_rows(bigbird(block=2), False, [[Q] * 4] * 4)


def test_the_last_block_by_hand_is_that_of_the_document() -> None:
    """Five real tokens, then padding: tokens 0 and 4 are global."""
    got = weights(bigbird(block=1, random=0, window=1), 6, key_is_real=torch.arange(6)[None] < 5)[0, :5] > 0
    rows = [
        [1, 1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 0, 1, 0, 1, 0],
        [1, 0, 0, 1, 1, 0],
        [1, 1, 1, 1, 1, 0],
    ]
    assert torch.equal(got, torch.tensor(rows).bool())


def test_etc_by_hand() -> None:
    """Token 0 is global; blocks of two are cut behind it: tokens 1, 2 and token 3."""
    one = bigbird(block=2, random=0, window=1, variant="etc", global_tokens=1)
    assert_rows(one, False, [[Q] * 4, [T, T, T, 0], [T, T, T, 0], [H, 0, 0, H]])


def test_a_random_block_by_hand() -> None:
    """Of six blocks of one token, block 1 sees 0, 1, 2, 5 and one of 3 and 4."""
    found = {
        tuple((weights(bigbird(seed=s, block=1, random=1), 6)[0, 1] > 0).int().tolist()) for s in range(20)
    }
    assert found == {(1, 1, 1, 1, 0, 1), (1, 1, 1, 0, 1, 1)}


@pytest.mark.parametrize("first", [None, 0, 7])
@pytest.mark.parametrize(
    ("block", "random", "window"), [(4, 2, 3), (1, 3, 5), (5, 4, 1), (3, 50, 3), (70, 3, 3)]
)
def test_it_is_a_boolean_mask_plus_that_many_random_blocks(
    block: int, random: int, window: int, first: int | None
) -> None:
    n, heads = 61, 3
    variant = {} if first is None else {"variant": "etc", "global_tokens": first}
    made = bigbird(heads, block=block, random=random, window=window, **variant)
    got = weights(made, n, heads)
    shown = got > 0
    each = shown.double() / shown.sum(-1, keepdim=True)
    assert_close(got, each, "parity", "a key was counted twice")
    first = 2 * block if first == 0 else first
    fixed = fixed_part(n, block, window // 2, first)
    assert (shown | ~fixed).all(), "a global or window pair is missing"
    cut = (
        torch.arange(n) // block
        if first is None
        else (torch.arange(n) - min(first, n)).div(block).floor().long()
    )
    for head in range(heads):
        for i in range(n):
            left_out = cut[~fixed[i]].unique().tolist()
            drawn = cut[shown[head, i] & ~fixed[i]].unique()
            assert len(drawn) == min(random, len(left_out))
            assert torch.equal(shown[head, i] & ~fixed[i], torch.isin(cut, drawn) & ~fixed[i]), "half a block"
            assert torch.equal(shown[head, i], shown[head, cut == cut[i]][0]), "a block shares its blocks"


@pytest.mark.parametrize("variant", ["itc", "etc"])
def test_random_blocks_are_uniform_over_those_left_out(variant: str) -> None:
    """Block 9 of 20 sees 3 of 15 (itc, without 0 and 19) or of 16 (etc with one global token in front)."""
    made = bigbird(4000, block=1, window=3, variant=variant, global_tokens=int(variant == "etc"))
    shown = weights(made, 20, 4000)[:, 9] > 0
    covered = {0, 8, 9, 10} | ({19} if variant == "itc" else set())
    free = [j for j in range(20) if j not in covered]
    counts, share = shown.sum(0), 3 / len(free)
    assert (counts[list(covered)] == 4000).all()
    assert (counts[free] - 4000 * share).abs().max() < 4 * (4000 * share * (1 - share)) ** 0.5


def test_training_evaluation_and_reload_see_one_pattern() -> None:
    text = "bigbird(block=3, random=2)"
    x = cases.draw((1, 61, 32), torch.Generator().manual_seed(0)).float()
    layer, other = mf.attention(text, 32, 4), mf.attention(text, 32, 4, seed=1)
    y = layer.train()(x)
    assert torch.equal(layer.eval()(x), y)
    other.load_state_dict(
        {k: v for k, v in layer.state_dict().items() if not k.endswith("seed")}, strict=False
    )
    assert not torch.equal(other(x), y), "the seed must matter"
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), y)


@pytest.mark.parametrize(
    "text",
    [
        "bigbird(block=4)",
        "bigbird(block=4, variant=etc)",
        "random(block=4)",
        "strided",
        "dilated",
        "global_tokens",
    ],
)
def test_it_runs_on_the_native_kernel(text: str) -> None:
    if load().library is None:
        pytest.skip(f"no native kernel: {load().reason}")
    x = cases.draw((1, 61, 32), torch.Generator().manual_seed(0)).float()
    assert mf.attention(text, 32, 4).attend(x).kernels == ("native",)


def test_causal_is_refused_with_the_reason() -> None:
    with pytest.raises(
        mf.MapformersError, match=r"bigbird: causal .* see the whole future.*; use causal=False"
    ):
        mf.attention("bigbird", 32, 4, causal=True)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"block": 0}, "block"),
        ({"random": -1}, "random"),
        ({"window": 2}, "window"),
        ({"window": 0}, "window"),
        ({"global_tokens": 4}, "global_tokens"),
        ({"variant": "etc", "global_tokens": -1}, "global_tokens"),
        ({"variant": "itcc"}, "variant"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], word: str) -> None:
    with pytest.raises(mf.MapformersError, match=f"bigbird: {word} .*, got .*; "):
        mf.mechanism("bigbird", **options)
