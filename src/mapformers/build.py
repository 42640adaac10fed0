"""From specs to modules: the constructors of the public face."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from mapformers import spec
from mapformers.attention.multi_head import MultiHeadAttention, bind_mechanisms
from mapformers.attention.result import AttentionOptions, Ports
from mapformers.blocks.base import Block, Site
from mapformers.catalog import BLOCKS, LOSSES, MECHANISMS, MERGES, PROJECTIONS, SCORES, find
from mapformers.core.errors import require, require_known
from mapformers.core.mechanism import Mechanism
from mapformers.core.score import ScoreSite, ScoreTerm, SumOfTerms
from mapformers.heads.head_loss import HeadLoss
from mapformers.heads.merging import Concatenate, ConcatenateConfig, Merge
from mapformers.heads.projection import (
    GroupedQuery,
    GroupedQueryConfig,
    MultiHead,
    MultiHeadConfig,
    Projection,
    Sizes,
)


def make_config(entry: Any, options: dict[str, Any]) -> Any:
    """The config dataclass of a catalogue entry. Raises MapformersError for unknown options and wrong
    types.
    """
    name, hints = entry.card.name, get_type_hints(entry.Config)
    for key, value in options.items():
        require_known(name, f"option {key!r}", key, hints) if key not in hints else _check_type(
            name, key, value, hints[key]
        )
    return entry.Config(**options)


def mechanism(name: str, **options: Any) -> Mechanism:
    """A mechanism by its catalogue name, for example mechanism("band", window=128). Unknown options are
    refused.

    Sizes are fixed by the first call of `attend`, or by the layer that takes it.
    """
    entry = find(MECHANISMS, name, "mechanism")
    built: Mechanism = entry(make_config(entry, options))
    return built


def attention(
    mechanism: str | Mechanism,
    dim: int,
    heads: int,
    *,
    causal: bool = False,
    rotary: bool = False,
    rotary_base: float = AttentionOptions.rotary_base,
    head_dim: int | None = None,
    kv_heads: int | None = None,
    score: str | ScoreTerm | None = None,
    project: str | Projection | None = None,
    merge: str | Merge | None = None,
    loss: str | None = None,
    dropout: float = 0.0,
    seed: int | torch.Generator = 0,
) -> MultiHeadAttention:
    """A multi-head attention layer, x [B, N, dim] -> [B, N, dim].

    mechanism  a spec such as "band(window=128)" or "routing(clusters=16):4 + band:4", or a mechanism
    head_dim   size of a head; default dim / heads
    kv_heads   key/value heads; default heads. Short for project="grouped_query(kv_heads=..)"
    score, project, merge   the other ports, as spec or object
    loss       what heads are asked for besides the task, in training: "disagreement + guided" for example
    dropout    of the heads' outputs, in training
    seed       of the initial weights (or a torch.Generator); the global random state is not touched
    Raises MapformersError for sizes that do not divide, unknown names, and combinations that are not
    supported.
    """
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    for name, value in (("dim", dim), ("heads", heads)):
        require(value >= 1, f"attention: {name} must be 1 or more, got {value}; choose a positive number")
    require(
        head_dim is not None or dim % heads == 0 or _head_dim_of(project) is not None,
        f"attention: heads must divide dim={dim}, got {heads}; choose another number or give head_dim",
    )
    require(
        head_dim is None or head_dim >= 1, f"attention: head_dim must be 1 or more, got {head_dim}; drop it"
    )
    require(0 <= dropout < 1, f"attention: dropout must lie in [0, 1), got {dropout}; use 0.1 for example")
    sizes = Sizes(dim, heads, head_dim or _head_dim_of(project) or dim // heads)
    projection = _projection(project, kv_heads, sizes, generator)
    shares = bind_mechanisms(_mechanisms(mechanism, heads), sizes, projection, generator)
    ports = Ports(
        projection,
        _merge(merge, sizes, generator),
        _score(score, heads, projection.key_dim or sizes.head_dim, causal, generator),
        _losses(loss, sizes, causal, generator),
    )
    return MultiHeadAttention(sizes, shares, ports, AttentionOptions(causal, rotary, rotary_base, dropout))


def score(
    text: str, heads: int, head_dim: int, *, causal: bool = False, seed: int | torch.Generator = 0
) -> ScoreTerm:
    """A score term by its spec, for example "alibi" or "t5_bias(buckets=16) + adaptive_span(limit=1024)".

    For `mf.attend` and for layers of your own; `mf.attention` takes the spec itself.
    Raises MapformersError for unknown names and options.
    """
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    site = ScoreSite(heads, head_dim, causal)
    terms: list[ScoreTerm] = []
    for part in spec.parse(text):
        entry = find(SCORES, part.name, "score")
        terms.append(entry(make_config(entry, part.options), site, generator))
    return terms[0] if len(terms) == 1 else SumOfTerms(terms)


def block(
    text: str,
    dim: int,
    heads: int,
    *,
    causal: bool = False,
    rotary: bool = False,
    head_dim: int | None = None,
    seed: int | torch.Generator = 0,
) -> Block:
    """A block by its spec, for example "luna(length=16)" or "transformer(attention='band(window=64)')".

    head_dim   size of a head; default dim / heads
    Raises MapformersError for unknown names and options.
    """
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    parts = spec.parse(text)
    require(len(parts) == 1, f"block: must be one block, got {text!r}; stack blocks in a model")
    entry = find(BLOCKS, parts[0].name, "block")
    config = make_config(entry, parts[0].options)

    def attend(inner: str, project: str | None = None) -> MultiHeadAttention:
        return attention(
            inner,
            dim,
            heads,
            causal=causal,
            rotary=rotary,
            head_dim=head_dim,
            project=project,
            seed=generator,
        )

    site = Site(dim, heads, causal, rotary, generator, attend, head_dim)
    made: Block = entry.build(config, site)  # type: ignore[attr-defined]
    return made


def _mechanisms(given: str | Mechanism, heads: int) -> list[tuple[Mechanism, int]]:
    if isinstance(given, Mechanism):
        return [(given, heads)]
    parts = spec.parse(given)
    return [
        (mechanism(part.name, **part.options), share)
        for part, share in zip(parts, spec.shares_of(parts, heads), strict=True)
    ]


def _projection(
    given: str | Projection | None, kv_heads: int | None, sizes: Sizes, generator: torch.Generator
) -> Projection:
    require(
        given is None or kv_heads is None,
        f"attention: kv_heads and project exclude each other, got {given!r}; give one",
    )
    if isinstance(given, Projection):
        return given
    if kv_heads is not None:
        return GroupedQuery(GroupedQueryConfig(kv_heads), sizes, generator)
    if given is None:
        return MultiHead(MultiHeadConfig(), sizes, generator)
    entry, config = _one(PROJECTIONS, given, "project")
    projection: Projection = entry(config, sizes, generator)
    return projection


def _head_dim_of(given: str | Projection | None) -> int | None:
    """Size of the heads where a projection fixes it."""
    if not isinstance(given, str):
        return None
    entry, config = _one(PROJECTIONS, given, "project")
    found: int | None = entry.head_dim_of(config)
    return found


def _merge(given: str | Merge | None, sizes: Sizes, generator: torch.Generator) -> Merge:
    if isinstance(given, Merge):
        return given
    if given is None:
        return Concatenate(ConcatenateConfig(), sizes, generator)
    entry, config = _one(MERGES, given, "merge")
    merge: Merge = entry(config, sizes, generator)
    return merge


def _score(
    given: str | ScoreTerm | None, heads: int, key_dim: int, causal: bool, generator: torch.Generator
) -> ScoreTerm | None:
    if not isinstance(given, str):
        return given
    return score(given, heads, key_dim, causal=causal, seed=generator)


def _losses(
    given: str | None, sizes: Sizes, causal: bool, generator: torch.Generator
) -> tuple[HeadLoss, ...]:
    losses: list[HeadLoss] = []
    for part in spec.parse(given) if given is not None else ():
        entry = find(LOSSES, part.name, "loss")
        site = ScoreSite(sizes.heads, sizes.head_dim, causal)
        losses.append(entry(make_config(entry, part.options), site, generator))
    return tuple(losses)


def _one(entries: tuple[type, ...], text: str, what: str) -> tuple[Any, Any]:
    """The single entry that a spec names, and its config."""
    parts = spec.parse(text)
    require(len(parts) == 1, f"{what}: must be one entry, got {text!r}; name one")
    entry = find(entries, parts[0].name, what)
    return entry, make_config(entry, parts[0].options)


def _check_type(name: str, key: str, value: Any, hint: Any) -> None:
    """Options come as text: an int where a bool is meant must not pass."""
    if get_origin(hint) is Literal:
        require(
            value in get_args(hint),
            f"{name}: {key} must be one of {', '.join(map(repr, get_args(hint)))}, got {value!r}; choose one",
        )
        return
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return
    fits = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    require(fits, f"{name}: {key} must be {hint.__name__}, got {value!r}; for example {key}={_example(hint)}")


def _example(hint: type) -> str:
    return {int: "128", float: "0.5", bool: "true", str: "word"}.get(hint, "...")


__all__ = ["attention", "block", "make_config", "mechanism", "score"]
