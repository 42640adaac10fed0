"""Mechanisms, one paper a file, in folders named after the families of the survey."""
