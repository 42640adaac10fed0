"""Ports around the heads: projections and merges."""
