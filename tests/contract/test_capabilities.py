"""A card keeps its word both ways: what it claims works, what it does not claim is refused by name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import mapformers as mf
from mapformers.catalog import BLOCKS, MECHANISMS
from mapformers.core.card import CAPABILITIES
from mapformers.core.carry import Carry
from tests.contract import cases

N = 9
Probe = Callable[[str, bool, torch.Generator], Tensor]


def attend(text: str, causal: bool, generator: torch.Generator, m: int = N, **options: Any) -> Tensor:
    kv_heads = options.pop("kv_heads", cases.HEADS)
    q = cases.draw_qkv(N, generator)[0]
    k, v = cases.draw_qkv(m, generator, kv_heads=kv_heads)[1:]
    mechanism = cases.fresh(text, kv_heads)
    return mf.attend(mechanism, q, cases.share(text, q, k), v, causal=causal, **options)


def through_layer(text: str, causal: bool, generator: torch.Generator, **options: Any) -> Tensor:
    call = options.pop("call", {})
    layer = mf.attention(text, cases.DIM, cases.HEADS, causal=causal, **options).double()
    return layer(cases.draw((2, N, cases.DIM), generator), **call)


def decode(text: str, causal: bool, generator: torch.Generator) -> Tensor:
    layer = mf.attention(text, cases.DIM, cases.HEADS, causal=True).double()
    return layer.step(cases.draw((1, 1, cases.DIM), generator), layer.init_state(1))[0]


def rows(text: str, causal: bool, generator: torch.Generator) -> Tensor:
    q, k, _ = cases.draw_qkv(N, generator)
    return mf.dense_weights(cases.fresh(text), q, k, causal=causal)


REAL = torch.arange(N).expand(2, -1) > 2
DOCUMENTS = torch.arange(N).expand(2, -1) // 4
PROBES: dict[str, tuple[Probe, ...]] = {
    "bidirectional": (lambda t, c, g: attend(t, False, g), lambda t, c, g: through_layer(t, False, g)),
    "causal": (lambda t, c, g: attend(t, True, g), lambda t, c, g: through_layer(t, True, g)),
    "padding": (
        lambda t, c, g: attend(t, c, g, key_is_real=REAL),
        lambda t, c, g: through_layer(t, c, g, call={"key_is_real": REAL}),
    ),
    "segments": (
        lambda t, c, g: attend(t, c, g, segments=DOCUMENTS),
        lambda t, c, g: through_layer(t, c, g, call={"segments": DOCUMENTS}),
    ),
    "cross": (
        lambda t, c, g: attend(t, False, g, m=13),
        lambda t, c, g: through_layer(t, False, g, call={"context": cases.draw((2, 13, cases.DIM), g)}),
    ),
    "decode": (decode,),
    "grouped": (
        lambda t, c, g: attend(t, c, g, kv_heads=2),
        lambda t, c, g: through_layer(t, c, g, kv_heads=2),
    ),
    "rotary": (lambda t, c, g: through_layer(t, c, g, rotary=True),),
    "score": (
        lambda t, c, g: attend(t, c, g, score=mf.score("alibi", cases.HEADS, cases.HEAD_DIM)),
        lambda t, c, g: through_layer(t, c, g, score="alibi"),
    ),
    "rows_sum_to_one": (rows,),  # a promise, not a switch: test_parity.py holds it to account
}
PROMISES = {"rows_sum_to_one"}
FIRST = [texts[0] for texts in cases.SPECS.values()]


def test_every_capability_has_a_probe() -> None:
    assert set(PROBES) == set(CAPABILITIES)


@pytest.mark.parametrize("capability", PROBES)
@pytest.mark.parametrize("text", FIRST)
def test_claims_work_and_the_rest_is_refused_by_name(
    text: str, capability: str, generator: torch.Generator
) -> None:
    card = cases.build(text).card
    causal = card.causal == "strict"
    # A context is never causal: where a card is causal only, it is refused as bidirectional.
    only_causal = capability == "cross" and "bidirectional" not in card.supports
    named = "bidirectional" if only_causal else capability
    for probe in PROBES[capability]:
        if capability in card.supports or capability in PROMISES:
            assert probe(text, causal, generator).isfinite().all()
            continue
        with pytest.raises(mf.MapformersError) as error:
            probe(text, causal, generator)
        assert card.name in str(error.value)
        assert named in str(error.value) or capability == "decode"
        assert "; " in str(error.value), "no remedy"


def test_one_part_of_a_mixture_that_refuses_is_enough() -> None:
    with pytest.raises(mf.MapformersError, match="linear: rotary"):
        mf.attention("linear:2 + band:2", 32, 4, causal=True, rotary=True)
    with pytest.raises(mf.MapformersError, match="linformer: causal"):
        mf.attention("linformer:2 + band:2", 32, 4, causal=True)


def test_the_published_routing_refuses_causal_and_decode(generator: torch.Generator) -> None:
    text = "routing(clusters=4, window=6, membership=paper)"
    for probe in PROBES["causal"]:
        with pytest.raises(mf.MapformersError, match=r"routing: .*leaks the future"):
            probe(text, True, generator)
    leaky = "routing(clusters=4, window=6, membership=paper, allow_selection_leak=true)"
    with pytest.warns(UserWarning, match="allow_selection_leak"):
        layer = mf.attention(leaky, 32, 4, causal=True)
    with pytest.raises(mf.MapformersError, match="routing: cannot decode"):
        layer.init_state(1)


def test_a_layer_that_is_not_causal_refuses_to_decode() -> None:
    with pytest.raises(mf.MapformersError, match="decoding needs causal=True"):
        mf.attention("band", 32, 4).init_state(1)


@pytest.mark.parametrize("name", cases.BLOCKS)
def test_blocks_keep_their_word(name: str, generator: torch.Generator) -> None:
    card = next(entry.card for entry in BLOCKS if entry.card.name == name)  # type: ignore[attr-defined]
    x = cases.draw((2, N, cases.DIM), generator)
    causal = "causal" in card.supports

    def run(causal: bool, carry: Carry) -> Tensor:
        return mf.block(name, cases.DIM, cases.HEADS, causal=causal).double()(x, carry)[0]

    def step() -> Tensor:
        block = mf.block(name, cases.DIM, cases.HEADS, causal=causal).double()
        return block.step(x, Carry(), block.init_state(2))[0]

    probes: dict[str, Callable[[], Tensor]] = {
        "bidirectional": lambda: run(False, Carry()),
        "causal": lambda: run(True, Carry()),
        "padding": lambda: run(causal, Carry(key_is_real=REAL)),
        "segments": lambda: run(causal, Carry(segments=DOCUMENTS)),
        "decode": step,
    }
    for capability, probe in probes.items():
        if capability in card.supports:
            assert probe().isfinite().all()
        else:
            with pytest.raises(mf.MapformersError, match=name):
                probe()


def test_names_and_options_that_do_not_exist_are_refused_with_the_nearest() -> None:
    for entry in MECHANISMS:
        name = entry.card.name  # type: ignore[attr-defined]
        with pytest.raises(mf.MapformersError, match=f"nearest: .*{name}"):
            mf.mechanism(name + "x")
        with pytest.raises(mf.MapformersError, match=name):
            mf.mechanism(name, windwo=3)
