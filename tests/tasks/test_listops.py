"""ListOps: values by hand, lengths, and the published distribution."""

import pytest
import torch

from mapformers.core.errors import MapformersError
from mapformers.tasks.listops import CLOSE, DIGIT, OPERATORS, ListOps, evaluate, to_text

TOKENS = (
    {text: token for token, text in OPERATORS.items()} | {"]": CLOSE} | {str(i): DIGIT + i for i in range(10)}
)


def tokens_of(text: str) -> list[int]:
    return [TOKENS[word] for word in text.split()]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),
        ("[MIN 2 9 4 ]", 2),
        ("[MED 5 1 9 ]", 5),
        ("[MED 5 2 9 1 ]", 3),  # 3.5 rounded down
        ("[SM 7 8 9 ]", 4),
        ("[SM [MAX 3 4 ] [MED 0 9 ] ]", 8),
        ("7", 7),
    ],
)
def test_values_by_hand(text: str, value: int) -> None:
    assert evaluate(tokens_of(text)) == value
    assert to_text(tokens_of(text)) == text


@pytest.mark.parametrize("text", ["[MAX 2", "2 3", "]", "[MAX ]", ""])
def test_what_is_no_tree_is_refused(text: str) -> None:
    with pytest.raises(MapformersError, match="listops"):
        evaluate(tokens_of(text))


def test_the_published_lengths_and_answers() -> None:
    """500 < length < 2000; 0 and 9 are the most frequent answers, about 16 % each, as in Tay et al. 2021."""
    made = ListOps().batch(300, torch.Generator().manual_seed(0))
    lengths = made.is_real.sum(1)
    assert int(lengths.min()) > 500
    assert int(lengths.max()) < 2000
    assert 900 < float(lengths.double().mean()) < 1250
    shares = torch.bincount(made.target, minlength=10).double() / 300
    assert 0.10 < float(shares[0]) < 0.24
    assert 0.10 < float(shares[9]) < 0.24
    assert float(shares[1:9].max()) < float(torch.maximum(shares[0], shares[9]))
    used = torch.bincount(made.tokens.flatten(), minlength=16).double()
    operators = used[11:15] / used[11:15].sum()
    assert bool(((operators - 0.25).abs() < 0.02).all())
    assert float(used[15]) == float(used[11:15].sum())
    leaves = used[1:11].sum() / (used[1:11].sum() + used[11:15].sum())
    assert float(leaves) == pytest.approx(0.75, abs=0.1)  # trees that are kept are longer than most


def test_depth_and_arguments_are_kept() -> None:
    made = ListOps(fewest=0, most=200, depth=3, arguments=3).batch(200, torch.Generator().manual_seed(0))
    for row in made.tokens.tolist():
        deepest, depth, counts = 0, 0, []
        for token in row:
            if token in OPERATORS:
                if counts:
                    counts[-1] += 1
                depth, counts = depth + 1, [*counts, 0]
                deepest = max(deepest, depth)
            elif token == CLOSE:
                depth -= 1
                assert 2 <= counts.pop() <= 3
            elif token:
                counts[-1] += 1
        assert deepest <= 2  # the third level holds digits alone
        assert depth == 0


def test_a_seed_is_a_set_of_trees(global_random_untouched: None) -> None:
    task = ListOps(fewest=10, most=60)
    one, two, other = (task.batch(20, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.tokens, two.tokens)
    assert one.tokens.shape != other.tokens.shape or not torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.target, torch.tensor([evaluate(row) for row in one.tokens.tolist()]))
    assert torch.equal(one.is_real, one.tokens != 0)


def test_bad_sizes_are_named() -> None:
    for options in ({"most": 100}, {"depth": 1}, {"arguments": 1}, {"leaf": 1.0}, {"fewest": -1}):
        with pytest.raises(MapformersError, match="listops"):
            ListOps(**options)
    with pytest.raises(MapformersError, match="got none in 100,000 tries"):
        ListOps(fewest=50, most=60, depth=2, arguments=3).batch(1, torch.Generator())
