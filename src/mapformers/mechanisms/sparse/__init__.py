"""Sparse attention by position."""
