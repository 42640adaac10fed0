"""Training, evaluation and generation: presets, run folders, the Trainer and its callbacks."""
