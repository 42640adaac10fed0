"""Linearised attention."""
