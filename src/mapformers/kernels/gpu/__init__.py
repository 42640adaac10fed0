"""Ranges and windows on a GPU, by the kernels that torch ships."""
