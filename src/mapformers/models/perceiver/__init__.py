"""Perceivers as transformers models."""
