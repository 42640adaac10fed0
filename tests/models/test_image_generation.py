"""Images value by value: positions by hand, causality, drawing = decoding."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mapformers import MapformersError
from mapformers.models.image_generation import START, MapformerForImageGeneration
from tests.tolerances import assert_close

from .tiny import config_of

SHAPE = [3, 4, 2]


def model_of(attention: str = "routing(clusters=2, window=6):2 + band(window=4):2", **fields: Any) -> Any:
    sizes = {"vocab_size": 257, "positions": "axial", "image_shape": SHAPE, "rotary": False}
    config = config_of([{"attention": attention}] * 2, **{**sizes, **fields})
    return MapformerForImageGeneration(config).double().eval()


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (count, *SHAPE), generator=torch.Generator().manual_seed(seed))


def test_raster_order_with_channels_innermost() -> None:
    tokens = model_of().tokens_of(images(2))
    assert tokens.shape == (2, 25)
    assert tokens[:, 0].tolist() == [START, START]
    assert int(tokens[1, 1 + (2 * 4 + 3) * 2 + 1]) == int(images(2)[1, 2, 3, 1])


def test_positions_by_hand() -> None:
    model = model_of()
    rows, columns, channels = model.model.axes
    made = model.model._axial(torch.tensor([[0, 1, 2, 9, 23, 24]]))[0]
    for place, (row, column, channel) in enumerate(
        [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 1), (2, 3, 1), (2, 3, 1)]
    ):
        assert torch.equal(made[place], rows[row] + columns[column] + channels[channel])


@pytest.mark.parametrize(
    "attention", ["full", "sparse_transformer(stride=4)", "linear", "axial(axis=row, width=8)"]
)
def test_later_values_do_not_matter(attention: str) -> None:
    model = model_of(attention)
    one, two = model.tokens_of(images(2)), model.tokens_of(images(2, seed=1))
    for cut in (1, 7, 20):
        mixed = torch.cat([one[:, :cut], two[:, cut:]], 1)
        assert_close(model(mixed).logits[:, :cut], model(one).logits[:, :cut], "rounding")


def test_drawing_is_the_likeliest_value_of_the_whole_forward() -> None:
    model = model_of()
    drawn = model.draw(2, torch.Generator(), temperature=0.0, given=torch.tensor([7, 8, 9]))
    assert drawn.shape == (2, *SHAPE)
    tokens = model.tokens_of(drawn)
    best = model(tokens).logits[:, :-1, :256].argmax(-1)
    assert drawn.flatten(1)[:, :3].tolist() == [[7, 8, 9]] * 2
    assert torch.equal(best[:, 3:], drawn.flatten(1)[:, 3:])


def test_same_seed_same_image(global_random_untouched: None) -> None:
    model = model_of()
    one, two, other = (model.draw(1, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_every_bit_comes_back(tmp_path: Path) -> None:
    model = model_of().float()
    model.save_pretrained(tmp_path)
    again = MapformerForImageGeneration.from_pretrained(tmp_path)
    tokens = model.tokens_of(images(2))
    assert torch.equal(again(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"positions": "none", "image_shape": None}, "positions must be axial"),
        ({"vocab_size": 256}, "vocab_size 257"),
        ({"image_shape": None}, "image_shape goes with"),
        ({"image_shape": [3, 4]}, "image_shape must be"),
    ],
)
def test_what_cannot_be_is_named(fields: dict[str, Any], rule: str) -> None:
    with pytest.raises(MapformersError, match=rule):
        model_of(**fields)
    with pytest.raises(MapformersError, match="images must have shape"):
        model_of().tokens_of(images(2)[:, :2])
    with pytest.raises(MapformersError, match="count must be"):
        model_of().draw(0, torch.Generator())
