"""Perceivers against their definition: invariance, padding, portions, sizes, saving."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mapformers.blocks.read import Read, ReadSizes
from mapformers.core.errors import MapformersError
from mapformers.models.perceiver.config import PerceiverConfig
from mapformers.models.perceiver.model import (
    PerceiverForClassification,
    PerceiverForMaskedLM,
    PerceiverForRegression,
)
from mapformers.models.size import parameter_count
from tests.models.perceiver.tiny import GRID, MASKED, POINTS, TEXT, config_of, draw, ids
from tests.tolerances import assert_close

IMAGENET = {
    "input": {"kind": "grid", "shape": [224, 224], "channels": 3, "bands": 64},
    "latents": 512,
    "latent_size": 1024,
    "blocks": 8,
    "depth": 6,
    "num_labels": 1000,
}
BYTES = {
    "input": {"kind": "text", "vocab_size": 262, "length": 2048, "channels": 768},
    "output": {"kind": "array", "rows": 2048, "width": 768, "heads": 8, "qk": 256, "v": 768},
    "latents": 256,
    "latent_size": 1280,
    "blocks": 1,
    "depth": 26,
    "read_heads": 8,
    "read_qk": 256,
    "read_v": 1280,
    "latent_qk": 256,
    "latent_v": 1280,
}


def model_of(kind: Any = PerceiverForClassification, **fields: Any) -> Any:
    return kind(config_of(**fields)).double().eval()


@pytest.mark.parametrize(
    ("sharing", "millions"),
    [
        ({}, 44.9),
        ({"share_reads": "none", "share_blocks": False}, 326.2),
        ({"share_reads": "all"}, 42.1),
        ({"share_blocks": False}, None),
    ],
)
def test_the_published_numbers_of_parameters(sharing: dict[str, Any], millions: float | None) -> None:
    """Jaegle et al. 2021: 44.9 million with shared weights, 326.2 without."""
    count = parameter_count(PerceiverConfig(**IMAGENET, **sharing), PerceiverForClassification)
    assert millions is None or round(count / 1e6, 1) == millions


def test_the_masked_language_model_has_201_million_parameters() -> None:
    assert round(parameter_count(PerceiverConfig(**BYTES), PerceiverForMaskedLM) / 1e6, 1) == 201.1


def test_a_read_is_scaled_dot_product_attention() -> None:
    read = Read(ReadSizes(8, 6, heads=2, qk=4, v=12), torch.Generator().manual_seed(1)).double()
    x, context = draw(2, 3, 8).double(), draw(2, 7, 6, seed=1).double()
    y, c = F.layer_norm(x, (8,)), F.layer_norm(context, (6,))

    def heads(z: Tensor) -> Tensor:
        return z.unflatten(-1, (2, -1)).transpose(1, 2)

    q, k, v = heads(read.query(y)), heads(read.key(c)), heads(read.value(c))
    weights = (q @ k.mT / 2**0.5).softmax(-1)
    expected = x + read.output((weights @ v).transpose(1, 2).flatten(2))
    expected = expected + read.feed_forward(F.layer_norm(expected, (8,)))
    assert_close(read(x, context), expected, "parity")


def test_pixels_and_their_positions_in_any_order(generator: torch.Generator) -> None:
    """The array is a set: only what stands beside a value says where it belongs."""
    model, points = model_of(input=POINTS), draw(2, 13, 4).double()
    order = torch.randperm(13, generator=generator)
    assert_close(model(points[:, order]).logits, model(points).logits, "rounding")
    assert not torch.allclose(model(points.flip(-1)).logits, model(points).logits)


@pytest.mark.parametrize("portion", [1, 4, 7, 20])
def test_in_portions_as_at_once(portion: int) -> None:
    model, images = model_of(), draw(2, 5, 4, 3).double()
    once = model(images, labels=torch.tensor([1, 2]))
    once.loss.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    again = model(images, labels=torch.tensor([1, 2]), portion=portion)
    again.loss.backward()
    assert_close(again.logits, once.logits, "parity")
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, wanted[name], "gradient", name)


@pytest.mark.parametrize("side", ["left", "right", "inside"])
@pytest.mark.parametrize("portion", [None, 3])
def test_padding_does_not_matter(side: str, portion: int | None) -> None:
    model, points = model_of(input=POINTS), draw(1, 9, 4).double()
    where = {"left": range(4, 13), "right": range(9), "inside": [*range(5), *range(9, 13)]}[side]
    padded, mask = torch.full((1, 13, 4), 0.7, dtype=torch.float64), torch.zeros(1, 13)
    padded[:, list(where)], mask[:, list(where)] = points, 1
    assert_close(model(padded, mask, portion=portion).logits, model(points).logits, "parity")


def test_a_row_of_padding_reads_nothing() -> None:
    read = Read(ReadSizes(8, 6, heads=2, qk=4), torch.Generator().manual_seed(1), residual=False).double()
    with torch.no_grad():
        read.output.bias.fill_(3.0)
    x, context = draw(2, 3, 8).double(), draw(2, 7, 6).double().requires_grad_()
    mask = torch.tensor([[False] * 7, [True] * 7])
    attended = {}
    read.feed_norm.register_forward_hook(lambda module, given, made: attended.update(x=given[0]))
    for portion in (None, 2):
        out = read(x, context, mask, portion)
        assert bool((attended["x"][0] == 0).all())
        assert bool((attended["x"][1] != 0).all())
        out.sum().backward()
        assert bool(context.grad[0].eq(0).all())
        assert bool(context.grad.isfinite().all())


def test_a_row_alone_as_in_a_batch() -> None:
    model, images = model_of(), draw(3, 5, 4, 3).double()
    for row in range(3):
        assert_close(model(images[row : row + 1]).logits, model(images).logits[row : row + 1], "rounding")


@pytest.mark.parametrize("queries", ["trained", "fourier", "input"])
def test_any_outputs_as_all_of_them(queries: str, generator: torch.Generator) -> None:
    output = {"kind": "array", "channels": 2, "queries": queries, "shape": [5, 4], "bands": 3, "width": 10}
    output = {**output, "residual": True}
    model, images = model_of(PerceiverForRegression, output=output), draw(2, 5, 4, 3).double()
    everything = model(images).logits
    assert everything.shape == (2, 20, 2)
    rows = torch.randperm(20, generator=generator)[:7]
    assert_close(model(images, rows=rows).logits, everything[:, rows], "rounding")
    array, latents, _ = model.encode(images)
    assert_close(model.decode_in_portions(latents, array, 6), everything, "rounding")


def test_flow_and_several_modalities() -> None:
    flow = {"kind": "flow", "shape": [4, 6], "project": 8, "bands": 2}
    output = {"kind": "array", "channels": 2, "queries": "input", "scale": 0.01}
    model = model_of(PerceiverForRegression, input=flow, output=output)
    frames = draw(2, 2, 4, 6, 3).double()
    assert model(frames).logits.shape == (2, 24, 2)
    assert model(frames, labels=torch.zeros(2, 24, 2)).loss.ndim == 0
    parts = {"sound": {"kind": "grid", "shape": [12], "patch": [3], "bands": 2}, "picture": GRID}
    outputs = {
        "sound": {"kind": "array", "channels": 3, "rows": 4},
        "picture": {"kind": "array", "channels": 3, "queries": "fourier", "shape": [5, 4], "bands": 2},
    }
    model = model_of(
        PerceiverForRegression,
        input={"kind": "multimodal", "parts": parts},
        output={"kind": "multimodal", "parts": outputs},
    )
    inputs = {"sound": draw(2, 12, 1).double(), "picture": draw(2, 5, 4, 3).double()}
    made = model(inputs, labels={"sound": torch.zeros(2, 4, 3), "picture": torch.zeros(2, 20, 3)})
    assert {name: tuple(x.shape) for name, x in made.logits.items()} == {
        "sound": (2, 4, 3),
        "picture": (2, 20, 3),
    }
    masks = {"sound": torch.tensor([[1] * 12, [1] * 5 + [0] * 7]), "picture": None}
    other = {**inputs, "sound": inputs["sound"].clone()}
    other["sound"][1, 5:] = 9.0
    for name, x in model(inputs, masks).logits.items():
        assert_close(model(other, masks).logits[name], x, "rounding", name)


def test_sound_of_any_length() -> None:
    sound = {"kind": "grid", "shape": [64], "patch": [4], "bands": 3}
    model, clip = model_of(input=sound), draw(1, 22, 1).double()
    padded = F.pad(clip, (0, 0, 0, 30), value=0.4)
    mask = torch.cat([torch.ones(1, 22), torch.zeros(1, 30)], 1)
    assert_close(model(padded, mask).logits, model(clip).logits, "parity")


@pytest.mark.parametrize("fields", [{"latent_attention": "routing(clusters=2, window=4)"}, {}])
def test_every_bit_comes_back(tmp_path: Path, fields: dict[str, Any]) -> None:
    model, images = PerceiverForClassification(config_of(**fields)).eval(), draw(2, 5, 4, 3)
    model.save_pretrained(tmp_path)
    again = PerceiverForClassification.from_pretrained(tmp_path)
    assert torch.equal(model(images).logits, again(images).logits)
    assert again.config.to_diff_dict() == model.config.to_diff_dict()


def test_masked_bytes() -> None:
    model = model_of(PerceiverForMaskedLM, input=TEXT, output=MASKED)
    tokens = ids(2, 11)
    labels = tokens.clone()
    labels[:, ::2] = -100
    made = model(tokens, labels=labels)
    assert made.logits.shape == (2, 11, 30)
    expected = F.cross_entropy(made.logits.flatten(0, 1), labels.flatten())
    assert_close(made.loss, expected, "parity")
    with pytest.raises(MapformersError, match="at most 24 tokens"):
        model(ids(1, 25))


def test_activation_checkpointing_changes_nothing() -> None:
    model, images = model_of().train(), draw(2, 5, 4, 3).double()
    recomputing = copy.deepcopy(model)
    recomputing.activation_checkpointing_enable()
    for one in (model, recomputing):
        one(images, labels=torch.tensor([0, 1])).loss.backward()
    for (name, a), b in zip(model.named_parameters(), recomputing.parameters(), strict=True):
        assert_close(b.grad, a.grad, "rounding", name)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"latnets": 3}, "latents"),
        ({"input": {"kind": "gird"}}, "grid"),
        ({"input": {"kind": "grid", "shpe": [2]}}, "shape"),
        ({"input": {"kind": "grid", "shape": 3}}, "shape must be of the kind of"),
        ({"input": {"kind": "grid", "shape": [5, 4], "patch": [2, 2]}}, "multiple of patch"),
        ({"input": None}, "input"),
        ({"output": {"kind": "array"}}, "rows"),
        ({"latent_heads": 3}, "multiple of heads"),
        ({"reads": "twice"}, "each"),
        ({"latent_attention": "bnd"}, "band"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_bad_configs_are_named(fields: dict[str, Any], rule: str) -> None:
    with pytest.raises(MapformersError, match=rule) as caught:
        config_of(**fields)
    assert "\n" not in str(caught.value)


def test_bad_inputs_are_named() -> None:
    model = model_of()
    for given in (draw(2, 4, 5, 3), draw(2, 19, 3), draw(2, 20, 2)):
        with pytest.raises(MapformersError, match="must have shape"):
            model(given.double())
    with pytest.raises(MapformersError, match="exactly one of inputs"):
        model()
    for kind, fields in (
        (PerceiverForRegression, {}),
        (PerceiverForClassification, {"output": {"kind": "array", "rows": 3}}),
        (PerceiverForMaskedLM, {}),
        (PerceiverForMaskedLM, {"input": TEXT, "output": {"kind": "array", "rows": 3}}),
    ):
        with pytest.raises(MapformersError, match=kind.__name__):
            kind(config_of(**fields))
