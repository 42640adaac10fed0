"""What the layers of a model share: one tensor, one gradient, in memory as in the checkpoint."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mapformers.models.checkpoint import WEIGHTS
from mapformers.models.stack import MapformerModel

from .tiny import config_of, tokens

ATTENTION = "linformer(rank=4, length=32, sharing=layerwise)"
LAYERS = [
    {"attention": ATTENTION},
    {"attention": f"{ATTENTION}:2 + band(window=4):2"},  # two heads only: a size of its own
    {"attention": ATTENTION},
    {"attention": "linformer(rank=3, length=32, sharing=layerwise)"},  # another rank
    {"block": "luna(length=4)"},
]


def encoder(**fields: object) -> MapformerModel:
    return MapformerModel(config_of(LAYERS, causal=False, rotary=False, **fields)).eval()


def projections(model: MapformerModel) -> list[torch.nn.Parameter]:
    return [model.layers[i].block.attention.mechanisms[0].key_projection for i in range(4)]


def test_layers_of_the_same_settings_and_sizes_have_one_projection() -> None:
    first, narrow, third, other = projections(encoder())
    assert third is first
    assert len({id(p) for p in (first, narrow, other)}) == 3


def test_its_gradient_is_the_sum_over_the_layers() -> None:
    model = encoder()
    ids = tokens(2, 12)
    model(ids).last_hidden_state.sum().backward()
    together = projections(model)[0].grad
    apart = encoder()
    mechanism = apart.layers[2].block.attention.mechanisms[0]
    mechanism.key_projection = torch.nn.Parameter(mechanism.key_projection.detach().clone())
    apart(ids).last_hidden_state.sum().backward()
    grads = [p.grad for p in (projections(apart)[0], projections(apart)[2])]
    torch.testing.assert_close(together, grads[0] + grads[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_the_checkpoint_holds_it_once(tied: bool, tmp_path: Path) -> None:
    model = encoder(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / WEIGHTS, "pt") as file:
        names = [name for name in file.keys() if name.endswith("key_projection")]  # noqa: SIM118  not a dict
    assert len(names) == 3
    again = MapformerModel.from_pretrained(tmp_path)
    assert projections(again)[2] is projections(again)[0]
    ids = tokens(2, 12)
    assert torch.equal(model(ids).last_hidden_state, again(ids).last_hidden_state)
    assert model.num_parameters() == again.num_parameters() == sum(p.numel() for p in model.parameters())
