"""Mapformers: the map of efficient transformers, as working, proven, fast code."""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mapformers.audit import audit
    from mapformers.build import attention, block, mechanism, score
    from mapformers.catalog import catalog
    from mapformers.core.errors import MapformersError
    from mapformers.functional import attend, dense_weights

__version__ = "0.1.0"

__all__ = [
    "MapformersError",
    "attend",
    "attention",
    "audit",
    "block",
    "catalog",
    "dense_weights",
    "mechanism",
    "score",
]

# Where each public name lives. Loaded at its first use, so that the command line starts without torch.
_HOMES = {
    "MapformersError": "core.errors",
    "attend": "functional",
    "attention": "build",
    "audit": "audit",
    "block": "build",
    "catalog": "catalog",
    "dense_weights": "functional",
    "mechanism": "build",
    "score": "build",
}


class _Face(types.ModuleType):
    """The package itself. Importing the folder `mapformers.attention` must not hide the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_HOMES})


sys.modules[__name__].__class__ = _Face
