"""Low-rank attention: scores or weights as products of thin matrices."""
