"""Labelled examples out of generators: each makes what it says, and the same for the same seed."""

import numpy as np
import pytest

from mapformers.core.errors import MapformersError
from mapformers.tasks.generated import GENERATORS, generate_labelled
from mapformers.tasks.listops import evaluate

OPTIONS = {
    "listops": {"fewest": 5, "most": 40},
    "tones": {"samples": 64, "rate": 4000},
}


@pytest.mark.parametrize("name", GENERATORS)
def test_splits_and_seeds(name: str) -> None:
    one, two, other = (
        generate_labelled(name, OPTIONS.get(name, {}), (60, 10, 20), seed) for seed in (0, 0, 1)
    )
    assert [len(one.splits[split]) for split in ("train", "valid", "test")] == [60, 10, 20]
    for split, examples in one.splits.items():
        assert np.array_equal(examples.values, two.splits[split].values)
        assert np.array_equal(examples.labels, two.splits[split].labels)
    assert not np.array_equal(one.splits["train"].values, other.splits["train"].values)
    assert len(one.classes) >= 2


def test_bytes_of_listops_are_its_tokens() -> None:
    examples = generate_labelled("listops", OPTIONS["listops"], (30, 1, 1), 0).splits["train"]
    assert all(evaluate(examples.row(i).tolist()) == examples.labels[i] for i in range(30))


def test_verbs_agree_or_do_not() -> None:
    examples = generate_labelled("agreement", {}, (200, 1, 1), 0).splits["train"]
    assert 0.3 < examples.labels.mean() < 0.7
    for i in range(200):
        words = bytes(examples.row(i)).decode().split()
        subject = words[1] if words[0] in ("hod", "oft", "nenk", "ree") else words[0]
        agrees = subject.endswith("i") == words[-1].endswith("en")  # articles of many end with i
        assert agrees == bool(examples.labels[i])


def test_bad_options_are_named() -> None:
    with pytest.raises(MapformersError, match="nearest: depth"):
        generate_labelled("listops", {"dpth": 3}, (1, 1, 1), 0)
    with pytest.raises(MapformersError, match="nearest: tones"):
        generate_labelled("tons", {}, (1, 1, 1), 0)
    with pytest.raises(MapformersError, match="2 classes or more"):
        generate_labelled("tones", {**OPTIONS["tones"], "classes": 2}, (1, 1, 1), 6)
