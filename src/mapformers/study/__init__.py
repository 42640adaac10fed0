"""Models trained side by side: which attention, at equal cost."""
