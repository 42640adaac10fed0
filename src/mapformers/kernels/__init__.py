"""Kernels run plans on q, k, v; they know tensors, never papers."""
