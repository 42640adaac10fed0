"""Well-known packages of others, and how a layer of each is made to be audited like ours."""

import importlib
import importlib.metadata
import io
import sys
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mapformers.core.errors import MapformersError, require, require_known

DIM, HEADS, LENGTH = 32, 4, 64  # of what is audited; a multiple of every block and bucket below


@dataclass(frozen=True)
class Peer:
    """A module of a package.

    package    its name on the package index
    target     package:Class
    of         the entry of our catalogue that comes from the same paper
    arguments  of the class
    causal     whether it is made to be causal
    mask       the argument that takes a mask [B, N], None = it takes none
    needs_step whether its buffers are made by a first forward in training mode
    """

    package: str
    target: str
    of: str
    arguments: dict[str, Any] = field(default_factory=dict)
    causal: bool = True
    mask: str | None = None
    needs_step: bool = False


_SIZES = {"dim": DIM, "heads": HEADS}
_STACK = {**_SIZES, "depth": 2}
_LAYER = {**_SIZES, "dim_head": DIM // HEADS}
PEERS = (
    Peer(
        "routing-transformer",
        "routing_transformer:RoutingTransformer",
        "routing",
        {**_STACK, "max_seq_len": LENGTH, "window_size": 16, "n_local_attn_heads": 0, "causal": True},
        needs_step=True,
    ),
    # reverse_thres: below it the layers run as plain ones, whose derivatives exist in eval mode
    Peer(
        "reformer-pytorch",
        "reformer_pytorch:Reformer",
        "reformer",
        {**_STACK, "bucket_size": 8, "n_hashes": 2, "causal": True, "reverse_thres": 16 * LENGTH},
    ),
    Peer(
        "performer-pytorch",
        "performer_pytorch:Performer",
        "performer",
        {**_STACK, "dim_head": DIM // HEADS, "causal": True},
    ),
    Peer(
        "linear-attention-transformer",
        "linear_attention_transformer:LinearAttentionTransformer",
        "linear",
        {**_STACK, "max_seq_len": LENGTH, "causal": True},
    ),
    Peer(
        "local-attention",
        "local_attention:LocalMHA",
        "band",
        {**_LAYER, "window_size": 16, "causal": True},
        mask="mask",
    ),
    Peer(
        "nystrom-attention",
        "nystrom_attention:NystromAttention",
        "nystrom",
        {**_LAYER, "num_landmarks": 8},
        causal=False,
        mask="mask",
    ),
    Peer(
        "linformer",
        "linformer:Linformer",
        "linformer",
        {**_STACK, "seq_len": LENGTH, "k": 16},
        causal=False,
    ),
)


def version_of(package: str) -> str | None:
    """The version that is installed, None where it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def installed() -> tuple[Peer, ...]:
    """The peers that are there. Raises MapformersError when none is."""
    found = tuple(peer for peer in PEERS if version_of(peer.package) is not None)
    names = " ".join(peer.package for peer in PEERS)
    require(bool(found), f"peers: one or more must be installed, got none; pip install {names}")
    return found


def known_peer(target: str) -> Peer | None:
    """The peer of `package:Class`, None for a module that is not in the list."""
    return next((peer for peer in PEERS if peer.target == target), None)


def class_of(target: str) -> Any:
    """What `package:Class` names. Raises MapformersError where there is no such module or name."""
    package, colon, name = target.partition(":")
    require(
        bool(colon and package and name),
        f"--module: must be package:Class, got {target}; write --module "
        "routing_transformer:RoutingTransformer",
    )
    here = str(Path.cwd())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # packages of others warn about their own age
            sys.path.insert(0, here)  # so that a file in this folder can be named
            module = importlib.import_module(package)
    except ImportError as error:
        raise MapformersError(
            f"--module: {package} must be importable, got {error}; pip install it, or start in its folder"
        ) from None
    finally:
        sys.path.remove(here)
    public = [one for one in dir(module) if not one.startswith("_")]
    require_known("--module", f"name in {package}", name, public)
    return getattr(module, name)


def make(target: str, arguments: dict[str, Any], seed: int, needs_step: bool = False) -> nn.Module:
    """A module of `package:Class`, made with these arguments from a seed.

    Raises MapformersError where the class refuses them or makes something that is no module.
    """
    kind = class_of(target)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)  # packages of others draw from the global generator
        try:
            made = kind(**arguments)
            if needs_step:
                made.train()(torch.randn(2, LENGTH, DIM, generator=torch.Generator().manual_seed(seed)))
        except Exception as error:  # whatever somebody's constructor raises
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise MapformersError(
                f"--module: {target} must be made with {arguments}, got {said}; give --set NAME=VALUE"
            ) from None
    require(
        isinstance(made, nn.Module),
        f"--module: {target} must make an nn.Module, got {type(made).__name__}; name a class of modules",
    )
    return made  # type: ignore[no-any-return]
