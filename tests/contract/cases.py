"""How the contract suite builds the configurations of its table, and the inputs that it draws for them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import mapformers as mf
from mapformers import spec
from mapformers.attention.multi_head import MultiHeadAttention
from mapformers.catalog import BLOCKS as BLOCK_ENTRIES
from mapformers.catalog import find
from mapformers.core.mechanism import Mechanism, Shape
from tests.contract import table
from tests.contract.costs import COSTS as COSTS
from tests.contract.costs import CostRule as CostRule
from tests.contract.ports import PORT_CHANGES
from tests.contract.table import ALL as ALL
from tests.contract.table import ALL_BLOCKS as ALL_BLOCKS
from tests.contract.table import BLOCKS as BLOCKS
from tests.contract.table import MIXTURES as MIXTURES
from tests.contract.table import SPECS as SPECS

CHANGES = {**table.CHANGES, **PORT_CHANGES}
HEADS, HEAD_DIM, DIM = 4, 8, 32
LENGTHS = (1, 2, 5, 6, 7, 17, 40, 61, 67, 131)  # 5, 6, 7: window and window +- 1; 61, 67, 131 are primes
LENGTHS_WITH_GRADIENT = (2, 17, 67, 131)
POOLING = (
    "linear",
    "performer",
    "clustered",
    "improved_clustered",
    "rfa",
    "informer",
    "delta",
    "linformer",
    "memory_compressed",
    "nsa",
    "low_rank_band",
    "csalr",
    "nystrom",
)  # one product serves many keys, so pairs are not what it costs
# Who sees whom depends on q and k.
BY_CONTENT = ("reformer", "clustered", "sac", "routing", "moba", "nsa", "informer(factor")


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
        if capability in ("bidirectional", "cross") and _refuses(lambda made=made: made.check_causal(False)):
            return False
        if capability == "cross" and _refuses(made.check_cross):
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


def by_content(text: str) -> bool:
    """Whether the data decide who sees whom in some part of a spec."""
    return any(name in text for name in BY_CONTENT)


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
