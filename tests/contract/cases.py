"""The small configurations that the contract suite runs, and how it builds them.

Every list is checked against the catalogue (test_catalog.py): a new mechanism, block or option without a line
here fails the suite.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

import mapformers as mf
from mapformers import spec
from mapformers.attention.multi_head import MultiHeadAttention
from mapformers.catalog import BLOCKS as BLOCK_ENTRIES
from mapformers.catalog import find
from mapformers.core.mechanism import Mechanism, Shape

HEADS, HEAD_DIM, DIM = 4, 8, 32
LENGTHS = (1, 2, 5, 6, 7, 17, 40, 61, 67, 131)  # 5, 6, 7: window and window +- 1; 61, 67, 131 are primes
LENGTHS_WITH_GRADIENT = (2, 17, 67, 131)

SPECS: dict[str, tuple[str, ...]] = {
    "full": ("full",),
    "global_tokens": ("global_tokens(count=3)", "global_tokens(count=70)"),
    "band": ("band(window=5)", "band(window=0)", "band(window=70)"),
    "dilated": (
        "dilated(window=5, dilation=3)",
        "dilated(window=0, dilation=2)",
        "dilated(window=6, dilation=1)",
        "dilated(window=70, dilation=5)",
    ),
    "strided": ("strided(stride=5)", "strided(stride=1)", "strided(stride=7)"),
    "random": (
        "random(count=2, block=6)",
        "random(count=3, block=1)",
        "random(count=5, block=4)",
        "random(count=1, block=70)",
    ),
    "block_local": ("block_local(block=6)", "block_local(block=70)"),
    "longformer": (
        "longformer(window=5, global_tokens=3)",
        "longformer(window=5)",
        "longformer(window=2, dilation=3, global_tokens=7)",
        "longformer(window=6, dilation=2)",
        "longformer(window=0, global_tokens=70)",
    ),
    "bigbird": (
        "bigbird(block=5, random=2)",
        "bigbird(block=4, random=0, window=5)",
        "bigbird(block=3, random=4, window=1)",
        "bigbird(block=5, random=2, variant=etc, global_tokens=3)",
        "bigbird(block=4, random=1, variant=etc)",
        "bigbird(block=70)",
    ),
    "sparse_transformer": (
        "sparse_transformer(stride=5, part=both)",
        "sparse_transformer(stride=1, part=both)",
        "sparse_transformer(stride=70, part=local)",
        "sparse_transformer(stride=5, part=summary)",
        "sparse_transformer(pattern=fixed, stride=6, summary=2, part=both)",
        "sparse_transformer(pattern=fixed, stride=5, summary=5, part=both)",
        "sparse_transformer(pattern=fixed, stride=6, part=local)",
        "sparse_transformer(pattern=fixed, stride=7, summary=3, part=summary)",
    ),
    "axial": ("axial(width=6)", "axial(axis=column, width=6)", "axial(width=70)"),
    "image_local": (
        "image_local(width=7, query_height=2, query_width=3, memory_height=1, memory_width=2)",
        "image_local(width=6, query_height=3, query_width=2, memory_height=4, memory_width=3)",
        "image_local(width=0, query_height=1, query_width=5, memory_height=0, memory_width=6)",
        "image_local(width=9, query_height=2, query_width=4, memory_height=0, memory_width=0)",
    ),
    "routing": (
        "routing(clusters=4, window=6)",
        "routing(clusters=4, window=6, query_clusters=1)",
        "routing(clusters=3, window=6, query_clusters=3, gate=true)",
        "routing(clusters=4, window=6, share_qk=true)",
        "routing(clusters=5, window=6, membership=threshold)",
        "routing(clusters=5, window=4, membership=threshold, gate=true)",
        "routing(clusters=3, window=6, membership=random)",
        "routing(clusters=5, window=6, membership=lsh)",
        "routing(clusters=1, window=70, query_clusters=1)",
        "routing(clusters=4, window=6, membership=paper)",
    ),
    "linear": ("linear",),
    "linformer": ("linformer(rank=4, length=256)",),
}
ALL = tuple(text for texts in SPECS.values() for text in texts)
MIXTURES = (
    "routing(clusters=4, window=6):2 + band(window=5):2",
    "band(window=3):1 + full:1 + block_local(block=6):1 + routing(clusters=3, window=4):1",
    "linear:2 + band(window=4):2",
    "sparse_transformer(stride=6, part=local):2 + sparse_transformer(stride=6, part=summary):2",
)

BLOCKS: dict[str, tuple[str, ...]] = {
    "transformer": (
        "transformer(attention='band(window=5)')",
        "transformer(attention='routing(clusters=4, window=6):2 + band:2', norm=post, activation=geglu)",
        "transformer(attention='linear', activation=relu, hidden=48)",
    ),
    "binary_tree": (
        "binary_tree(k=2)",
        "binary_tree(k=1, clip=1, norm=pre, activation=geglu)",
        "binary_tree(k=3, clip=0, hidden=40)",
    ),
    "axial_image": (
        "axial_image(width=6)",
        "axial_image(width=7, outer=1, inner=1, activation=relu, shift=false)",
    ),
    "luna": ("luna(length=4)", "luna(length=3, activation=geglu, hidden=40)"),
}
ALL_BLOCKS = tuple(text for texts in BLOCKS.values() for text in texts)

# Option -> (other options, value to compare with the default under them). Each must change something.
CHANGES: dict[str, dict[str, tuple[dict[str, Any], Any]]] = {
    "full": {},
    "global_tokens": {"count": ({}, 3)},
    "band": {"window": ({}, 3)},
    "dilated": {"window": ({}, 3), "dilation": ({"window": 3}, 3)},
    "strided": {"stride": ({}, 3)},
    "random": {"count": ({"block": 4}, 2), "block": ({}, 4)},
    "block_local": {"block": ({}, 4)},
    "longformer": {
        "window": ({}, 3),
        "dilation": ({"window": 3}, 3),
        "global_tokens": ({"window": 3}, 2),
    },
    "bigbird": {
        "block": ({}, 4),
        "random": ({"block": 3}, 1),
        "window": ({"block": 3}, 5),
        "variant": ({"block": 3}, "etc"),
        "global_tokens": ({"block": 3, "variant": "etc"}, 2),
    },
    "sparse_transformer": {
        "pattern": ({"stride": 9}, "fixed"),
        "stride": ({}, 4),
        "summary": ({"pattern": "fixed", "stride": 9}, 2),
        "part": ({"stride": 4}, "local"),
    },
    "axial": {"axis": ({}, "column"), "width": ({}, 8), "height": ({"width": 5}, 7)},
    "image_local": {
        "width": ({"query_height": 2, "query_width": 4, "memory_width": 1}, 6),
        "height": ({"width": 5, "query_height": 3, "query_width": 2}, 8),
        "query_height": ({"width": 5}, 3),
        "query_width": ({"width": 5, "query_height": 2, "memory_width": 1}, 3),
        "memory_height": ({"width": 5, "query_height": 3}, 1),
        "memory_width": ({"width": 5, "query_height": 2, "query_width": 2}, 1),
    },
    "linear": {},
    "linformer": {"rank": ({}, 3), "length": ({}, 64)},
    "routing": {
        "clusters": ({}, 3),
        "window": ({"clusters": 2}, 3),
        "query_clusters": ({"clusters": 4, "window": 6}, 1),
        "share_qk": ({}, True),
        "membership": ({}, "random"),
        "gate": ({}, True),
        "decay": ({}, 0.5),
        "allow_selection_leak": ({"membership": "paper", "clusters": 4, "window": 6}, True),
    },
    "alibi": {},
    "multi_head": {},
    "local_global": {},
    "grouped_query": {"kv_heads": ({}, 2)},
    "concatenate": {},
    "transformer": {
        "attention": ({}, "band(window=2)"),
        "norm": ({}, "post"),
        "activation": ({}, "relu"),
        "hidden": ({}, 24),
        "dropout": ({}, 0.5),
    },
    "binary_tree": {
        "k": ({}, 2),
        "clip": ({}, 1),
        "norm": ({}, "pre"),
        "activation": ({}, "gelu"),
        "hidden": ({}, 24),
    },
    "axial_image": {
        "width": ({}, 8),
        "height": ({"width": 5}, 7),
        "outer": ({}, 1),
        "inner": ({}, 1),
        "shift": ({}, False),
        "activation": ({}, "relu"),
        "hidden": ({}, 24),
    },
    "luna": {
        "length": ({}, 3),
        "activation": ({}, "relu"),
        "hidden": ({}, 24),
        "learned_start": ({}, False),
    },
}

# How `cost().flops` is held against the definition.
#   visible  4 D for each pair that the dense twin shows      all  4 D for each pair, hidden or not
#   counted  exactly what the kernel multiplies               bound  at least what the dense twin shows
CostRule = Literal["visible", "all", "counted", "bound"]
COSTS: dict[str, tuple[str, CostRule, float]] = {  # spec, rule, growth of the FLOPs with n as an exponent
    "full": ("full", "all", 2.0),
    "global_tokens": ("global_tokens(count=128)", "visible", 1.0),
    "band": ("band(window=128)", "visible", 1.0),
    "dilated": ("dilated(window=128, dilation=2)", "visible", 1.0),
    "strided": ("strided(stride=4)", "visible", 2.0),
    "random": ("random(count=3, block=64)", "visible", 1.0),
    "block_local": ("block_local(block=128)", "visible", 1.0),
    "longformer": ("longformer(window=128, global_tokens=64)", "visible", 1.0),
    "bigbird": ("bigbird(block=64, random=3)", "visible", 1.0),
    "sparse_transformer": ("sparse_transformer(stride=3)", "visible", 2.0),
    "axial": ("axial(width=128)", "visible", 1.0),
    "image_local": (
        "image_local(width=0, query_height=1, query_width=128, memory_height=0, memory_width=128)",
        "visible",
        1.0,
    ),
    "routing": ("routing(clusters=4, window=128)", "bound", 1.0),
    "linear": ("linear", "counted", 1.0),
    "linformer": ("linformer(rank=16, length=8192)", "counted", 1.0),
}


def options_text(options: dict[str, Any]) -> str:
    """Options as they stand in a spec."""
    return ", ".join(f"{key}={value!r}" for key, value in options.items())


def build(text: str) -> Mechanism:
    """The mechanism of a spec with one part."""
    (part,) = spec.parse(text)
    return mf.mechanism(part.name, **part.options)


def stir(module: nn.Module, generator: torch.Generator) -> None:
    """Move parameters and load biases off their starting values: a zero would hide a term that is missing."""
    moved = [p for _, p in module.named_parameters()]
    moved += [b for name, b in module.named_buffers() if name.endswith("bias")]
    with torch.no_grad():
        for tensor in moved:
            tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))


def fresh(text: str, kv_heads: int = HEADS, dtype: torch.dtype = torch.float64) -> Mechanism:
    """A mechanism with its sizes as it starts: load biases of zero leave ties."""
    made = build(text).bind(Shape(HEADS, kv_heads, HEAD_DIM), torch.Generator().manual_seed(1))
    return made.to(dtype).eval()


def bound(
    text: str, generator: torch.Generator, kv_heads: int = HEADS, dtype: torch.dtype = torch.float64
) -> Mechanism:
    """A mechanism with its sizes, stirred."""
    made = fresh(text, kv_heads, dtype)
    stir(made, generator)
    return made


def layer(text: str, generator: torch.Generator, causal: bool, **options: Any) -> MultiHeadAttention:
    """A stirred float64 layer in eval mode, with rotary positions where they are supported."""
    parts = [build(f"{part.name}({options_text(part.options)})") for part in spec.parse(text)]
    rotary = all("rotary" in part.card.supports for part in parts)
    made = mf.attention(text, DIM, HEADS, causal=causal, rotary=rotary, **options).double()
    stir(made, generator)
    return made.eval()


def block(text: str, generator: torch.Generator, causal: bool) -> nn.Module:
    """A stirred float64 block in eval mode."""
    made = mf.block(text, DIM, HEADS, causal=causal).double()
    stir(made, generator)
    return made.eval()


def supports(text: str, capability: str) -> bool:
    """Whether all parts of a spec claim a capability; causal and decode may depend on the options."""
    for part in spec.parse(text):
        made = mf.mechanism(part.name, **part.options)
        if capability not in made.card.supports:
            return False
        if capability in ("causal", "decode") and _refuses(lambda made=made: made.check_causal(True)):
            return False
    return True


def directions_of(text: str) -> tuple[bool, ...]:
    """The settings of `causal` that a spec takes."""
    return tuple(
        causal for causal in (False, True) if supports(text, "causal" if causal else "bidirectional")
    )


def block_supports(text: str, capability: str) -> bool:
    """Whether a block's card, and the attention inside it, claim a capability."""
    (part,) = spec.parse(text)
    entry = find(BLOCK_ENTRIES, part.name, "block")
    inner = part.options.get("attention", "full")
    return capability in entry.card.supports and supports(inner, capability)  # type: ignore[attr-defined]


def with_capability(*names: str, texts: tuple[str, ...] = ALL) -> list[str]:
    """The specs that claim all these capabilities."""
    return [text for text in texts if all(supports(text, name) for name in names)]


def with_directions(texts: tuple[str, ...] = ALL) -> list[tuple[str, bool]]:
    """Specs with every setting of `causal` that they take."""
    return [(text, causal) for text in texts for causal in directions_of(text)]


def draw(shape: tuple[int, ...], generator: torch.Generator, kind: str = "random") -> Tensor:
    """float64 [.., N, D] of a kind of input that makes selection hard.

    random      normal
    clustered   a few centres with little noise around them
    duplicated  exact copies of three vectors: ties everywhere
    zeros       every other token is zero: ties with every centroid
    """
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "random":
        return noise
    if kind == "zeros":
        noise[..., ::2, :] = 0
        return noise
    centres = 2 * torch.randn((*shape[:-2], 3, shape[-1]), generator=generator, dtype=torch.float64)
    choice = torch.randint(0, 3, shape[:-1], generator=generator)
    rows = centres.gather(-2, choice.unsqueeze(-1).expand(shape))
    return rows if kind == "duplicated" else rows + 0.05 * noise


def draw_qkv(
    n: int, generator: torch.Generator, kind: str = "random", kv_heads: int = HEADS, batch: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v with values a little narrower than keys."""
    return (
        draw((batch, HEADS, n, HEAD_DIM), generator, kind),
        draw((batch, kv_heads, n, HEAD_DIM), generator, kind),
        draw((batch, kv_heads, n, HEAD_DIM - 3), generator),
    )


def share(text: str, q: Tensor, k: Tensor) -> Tensor:
    """The keys to use: the queries themselves where the configuration shares them."""
    return q if "share_qk=true" in text and q.shape == k.shape else k


def mask(kind: str, n: int, generator: torch.Generator, batch: int = 2) -> Tensor:
    """[B, N] True = real; the first row has no padding. kind: left, right, holes."""
    real = torch.ones(batch, n, dtype=torch.bool)
    for row in range(1, batch):
        count = n // (2 + row)
        if kind == "left":
            real[row, :count] = False
        elif kind == "right":
            real[row, n - count :] = False
        else:
            real[row] = torch.rand(n, generator=generator) > 0.3
    return real


def documents(n: int, generator: torch.Generator, batch: int = 2) -> Tensor:
    """[B, N] contiguous documents of uneven length."""
    return (torch.rand(batch, n, generator=generator) > 0.85).long().cumsum(1)


def scope_arguments(kind: str, n: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Arguments of `attend` for a kind of scope."""
    if kind == "plain":
        return {}
    if kind == "packed":
        return {"segments": documents(n, generator), "key_is_real": mask("holes", n, generator)}
    if kind == "positions":
        steps = torch.randint(1, 3, (2, n), generator=generator)
        return {"positions": steps.cumsum(1) - 1}
    return {"key_is_real": mask(kind, n, generator)}


def scope_kinds(text: str) -> list[str]:
    """The kinds of scope that a configuration takes."""
    kinds = ["plain", "positions"]
    if supports(text, "padding"):
        kinds += ["left", "right", "holes"]
    if supports(text, "segments") and "paper" not in text:
        kinds.append("packed")
    return kinds


def _refuses(call: Callable[[], None]) -> bool:
    try:
        call()
    except mf.MapformersError:
        return True
    return False
