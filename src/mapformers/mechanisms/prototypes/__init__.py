"""Prototype attention: a few queries, or centroids of them, stand for all."""
