"""Which mechanisms speed.py measures, and one forward and backward of each."""

from collections.abc import Callable, Container
from typing import NamedTuple

import torch

import mapformers as mf
from mapformers import spec
from mapformers.core.carry import Carry
from mapformers.core.mechanism import Mechanism

HEADS, HEAD_DIM, WINDOW = 8, 64, 128
Run = Callable[[], object]


class Entry(NamedTuple):
    """A mechanism and the setting of `causal` under which it is measured."""

    mechanism: Mechanism
    causal: bool = True


def core(n: int) -> dict[str, str]:
    """Specs at length n; clusters hold about 256 tokens each."""
    clusters = max(2, n // 256)
    return {
        "band": f"band(window={WINDOW})",
        "routing, 1 cluster per query": f"routing(window={WINDOW}, clusters={clusters}, query_clusters=1)",
        "routing, 2 clusters per query": f"routing(window={WINDOW}, clusters={clusters})",
        "linear": "linear",
    }


def sparse(n: int) -> dict[str, str]:
    """Specs whose queries see about as many keys as the band's, on average; buckets hold about 256 tokens."""
    buckets = max(2, n // 256)
    image = "query_height=8, query_width=8, memory_height=4, memory_width=4"
    return {
        "global_tokens": "global_tokens(count=8)",
        "dilated": f"dilated(window={WINDOW}, dilation=2)",
        "block_local": f"block_local(block={2 * WINDOW})",
        "strided": "strided(stride=64)",
        "random": "random(count=2, block=64)",
        "longformer, 8 globals": f"longformer(window={WINDOW}, global_tokens=8)",
        "bigbird": "bigbird(block=64, random=3)",
        "sparse_transformer, strided": "sparse_transformer(pattern=strided, stride=128)",
        "sparse_transformer, fixed": "sparse_transformer(pattern=fixed, stride=128, summary=8)",
        "axial, rows of 128": "axial(axis=row, width=128)",
        "axial, columns of 128": f"axial(axis=column, width={max(1, n // WINDOW)})",
        "image_local": f"image_local(width=64, {image})",
        "reformer, 1 round": f"reformer(buckets={buckets}, window={WINDOW}, rounds=1)",
        "reformer, 4 rounds": f"reformer(buckets={buckets}, window={WINDOW}, rounds=4)",
        "moba": "moba(block=64, top=2)",
        "nsa": f"nsa(block=64, top=1, window={WINDOW // 2})",
    }


def compact(n: int) -> dict[str, str]:
    """Feature maps, prototypes, compressed keys and low rank, at the sizes their papers favour."""
    return {
        "linear": "linear",
        "performer, 256 features": "performer",
        "performer, relu": "performer(kernel=relu)",
        "rfa, 64 features": "rfa",
        "rfa with its gate": "rfa(gate=true)",
        "delta": "delta",
        "clustered, 100": "clustered",
        "improved_clustered, 100": "improved_clustered",
        "informer": "informer",
        "memory_compressed": "memory_compressed(stride=3)",
        "linformer, rank 256": f"linformer(rank=256, length={n})",
        "nystrom, 64 landmarks": "nystrom(landmarks=64)",
        "csalr, 64 landmarks": "csalr(landmarks=64)",
    }


# Two attentions through learned rows, without projections: what luna and induced_set do at their core.
TWO_STEPS = {"compact": {"luna, 16 rows": 16, "induced_set, 32 rows": 32}}
COMPACT_BLOCKS = {
    "luna block": f"luna(length=16, hidden={HEADS * HEAD_DIM})",
    "induced_set block": f"induced_set(points=32, hidden={HEADS * HEAD_DIM})",
    "poolingformer block": f"poolingformer(hidden={HEADS * HEAD_DIM})",
}
# Measured with their projections, so beside nothing; their feed-forward is as narrow as dim.
SPARSE_BLOCKS = {
    "star": "star",
    "etc": f"etc(radius=64, hidden={HEADS * HEAD_DIM})",
    "binary_tree": f"binary_tree(k=8, hidden={HEADS * HEAD_DIM})",
}
CAUSAL_BLOCKS = ("binary_tree",)
FAMILIES = {"core": core, "sparse": sparse, "compact": compact}
BLOCKS = {"core": {}, "sparse": SPARSE_BLOCKS, "compact": COMPACT_BLOCKS}


def mechanisms(family: str, n: int) -> dict[str, Entry]:
    """What is measured at length n: causal where the card allows it."""
    made = {}
    for name, text in FAMILIES[family](n).items():
        (part,) = spec.parse(text)
        mechanism = mf.mechanism(part.name, **part.options)
        made[name] = Entry(mechanism, mechanism.card.causal == "strict")
    return made


def inputs(n: int, heads: int = HEADS) -> list[torch.Tensor]:
    """q, k, v [1, heads, n, HEAD_DIM] and the gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, heads, n, HEAD_DIM, generator=generator) for _ in range(4)]
    return [x.requires_grad_() for x in tensors[:3]] + tensors[3:]


def runs_of(family: str, n: int, names: Container[str] | None = None) -> dict[str, Run]:
    """One forward and backward of every mechanism and block of the family at length n, or of those named."""
    q, k, v, grad = inputs(n)

    def both(entry: Entry) -> Run:
        return lambda: torch.autograd.grad(
            mf.attend(entry.mechanism, q, k, v, causal=entry.causal), (q, k, v), grad
        )

    entries, blocks = mechanisms(family, n).items(), BLOCKS[family].items()
    runs = {name: both(entry) for name, entry in entries if names is None or name in names}
    steps = TWO_STEPS.get(family, {}).items()
    runs |= {name: _two_steps(rows, n) for name, rows in steps if names is None or name in names}
    return runs | {name: _block_run(text, n) for name, text in blocks if names is None or name in names}


def _two_steps(rows: int, n: int) -> Run:
    q, k, v, grad = inputs(n)
    learned = torch.randn(
        1, HEADS, rows, HEAD_DIM, generator=torch.Generator().manual_seed(1)
    ).requires_grad_()
    full = mf.mechanism("full")

    def both() -> object:
        packed = mf.attend(full, learned, k, v)
        return torch.autograd.grad(mf.attend(full, q, packed, packed), (learned, q, k, v), grad)

    return both


def _block_run(text: str, n: int) -> Run:
    dim = HEADS * HEAD_DIM
    causal = spec.parse(text)[0].name in CAUSAL_BLOCKS
    block = mf.block(text, dim, HEADS, causal=causal)
    x = torch.randn(1, n, dim, generator=torch.Generator().manual_seed(0)).requires_grad_()
    wanted = (x, *block.parameters())
    return lambda: torch.autograd.grad(block(x, Carry())[0].sum(), wanted, allow_unused=True)
