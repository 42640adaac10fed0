"""Score terms: what is known about the scores before looking at q and k."""
