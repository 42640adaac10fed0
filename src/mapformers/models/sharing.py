"""Parameters that the layers of a model have in common."""

from typing import Any

from torch import nn

from mapformers.core.mechanism import Mechanism


def share_over_layers(layers: nn.ModuleList) -> dict[str, str]:
    """Let mechanisms of the same settings and sizes share what they name in `shared_over_layers`.

    The first layer's parameters become those of all. Returns the names that were replaced, below `layers`,
    with the names of what stands there now.
    """
    first: dict[tuple[Any, ...], tuple[str, nn.Parameter]] = {}
    replaced = {}
    for place, module in layers.named_modules():
        if not isinstance(module, Mechanism):
            continue
        for name in module.shared_over_layers:
            key = (module.card.name, module.config, module.shape, name)
            source, parameter = first.setdefault(key, (f"{place}.{name}", getattr(module, name)))
            if source != f"{place}.{name}":
                setattr(module, name, parameter)
                replaced[f"{place}.{name}"] = source
    return replaced
