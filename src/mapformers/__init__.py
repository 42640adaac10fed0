"""Mapformers: the map of efficient transformers, as working, proven, fast code."""

from mapformers.audit import audit
from mapformers.build import attention, block, mechanism
from mapformers.catalog import catalog
from mapformers.core.errors import MapformersError
from mapformers.functional import attend, dense_weights

__version__ = "0.1.0"

__all__ = ["MapformersError", "attend", "attention", "audit", "block", "catalog", "dense_weights", "mechanism"]
