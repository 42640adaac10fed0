"""Perceiver AR as a transformers model."""
