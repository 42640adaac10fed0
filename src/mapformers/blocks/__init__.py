"""Blocks: layers with a data flow of their own."""
