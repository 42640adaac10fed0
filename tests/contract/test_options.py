"""Every option changes something: an argument that is accepted and ignored fails here."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mapformers as mf
from mapformers.attention.multi_head import MultiHeadAttention
from mapformers.catalog import BLOCKS, LOSSES, MECHANISMS, MERGES, PROJECTIONS, SCORES, catalog
from mapformers.core.carry import Carry
from tests.contract import cases

N = 40
Behaviour = list[Tensor | str]


def trained(module: nn.Module, call: Callable[[Tensor], Tensor]) -> Behaviour:
    """Outputs before, while and after three updates of the centroids."""
    seen: Behaviour = []
    with torch.random.fork_rng(devices=[]):  # dropout draws from the global generator
        for step in range(4):
            x = cases.draw((2, N, cases.DIM), torch.Generator().manual_seed(step)).float()
            seen.append(call(x).detach())
            module.update_centroids()
    module.eval()
    seen.append(call(cases.draw((2, N, cases.DIM), torch.Generator().manual_seed(9)).float()).detach())
    return seen


def of_layer(**arguments: Any) -> Behaviour:
    """What two layers on top of each other do under both settings of causal, or how they refuse."""
    seen: Behaviour = []
    for causal in (False, True):
        try:
            layer = mf.attention(dim=cases.DIM, heads=cases.HEADS, causal=causal, **arguments)
            seen += trained(layer, lambda x, layer=layer: twice(layer, x))
        except mf.MapformersError as error:
            seen.append(str(error))
    return seen


def twice(layer: MultiHeadAttention, x: Tensor) -> Tensor:
    """The layer on top of itself, with what it carries, its losses and what learns beside it."""
    below = layer.attend(x)
    above = layer.attend(x + below.output, below.carry)
    learning = sum(p.requires_grad for p in layer.parameters())
    extra = [*above.losses.values(), torch.tensor(float(learning))]
    return torch.cat([above.output.flatten(), *(value.detach().flatten() for value in extra)])


def of_block(text: str) -> Behaviour:
    """The same of a block."""
    seen: Behaviour = []
    for causal in (False, True):
        try:
            block = mf.block(text, cases.DIM, cases.HEADS, causal=causal)
            seen += trained(block, lambda x, block=block: block(x, Carry())[0])
        except mf.MapformersError as error:
            seen.append(str(error))
    return seen


def behaviour(name: str, options: dict[str, Any]) -> Behaviour:
    text = f"{name}({cases.options_text(options)})"
    kinds = {entry.card.name: kind for kind, entries in ENTRIES.items() for entry in entries}  # type: ignore[attr-defined]
    if kinds[name] == "mechanism":
        return of_layer(mechanism=text)
    if kinds[name] == "block":
        return of_block(text)
    mechanism = "full" if kinds[name] in ("score", "loss") else "band(window=5)"
    return of_layer(mechanism=mechanism, **{kinds[name]: text})


ENTRIES = {
    "mechanism": MECHANISMS,
    "score": SCORES,
    "project": PROJECTIONS,
    "merge": MERGES,
    "loss": LOSSES,
    "block": BLOCKS,
}
OPTIONS = [(card.name, option.name) for card in catalog() for option in card.options]


def differ(a: Behaviour, b: Behaviour) -> bool:
    if len(a) != len(b):
        return True
    return any(
        x != y if isinstance(x, str) or isinstance(y, str) else x.shape != y.shape or not torch.equal(x, y)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*allow_selection_leak:UserWarning")
@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_every_option_changes_something(name: str, option: str) -> None:
    others, value = cases.CHANGES[name][option]
    plain, changed = behaviour(name, others), behaviour(name, {**others, option: value})
    assert differ(plain, changed), f"{name}: {option}={value!r} changes nothing"


@pytest.mark.parametrize(
    "option", ["causal", "rotary", "rotary_base", "head_dim", "kv_heads", "dropout", "seed"]
)
def test_every_argument_of_attention_changes_something(option: str) -> None:
    base: dict[str, Any] = {"rotary": True} if option == "rotary_base" else {}
    value = {
        "causal": True,
        "rotary": True,
        "rotary_base": 100.0,
        "head_dim": 4,
        "kv_heads": 2,
        "dropout": 0.5,
        "seed": 1,
    }[option]
    x = cases.draw((2, N, cases.DIM), torch.Generator().manual_seed(0)).float()
    outputs = []
    for arguments in (base, {**base, option: value}):
        with torch.random.fork_rng(devices=[]):
            outputs.append(mf.attention("band(window=5)", cases.DIM, cases.HEADS, **arguments)(x))
    assert not torch.equal(*outputs)


@pytest.mark.parametrize("option", ["key_is_real", "segments", "positions"])
def test_every_argument_of_the_call_changes_something(option: str) -> None:
    layer = mf.attention("band(window=5)", cases.DIM, cases.HEADS, rotary=True)
    x = cases.draw((2, N, cases.DIM), torch.Generator().manual_seed(0)).float()
    value = {
        "key_is_real": torch.arange(N).expand(2, -1) > 3,
        "segments": torch.arange(N).expand(2, -1) // 7,
        "positions": 3 * torch.arange(N).expand(2, -1),
    }[option]
    assert not torch.equal(layer(x), layer(x, **{option: value}))
