"""Sparse attention by content."""
