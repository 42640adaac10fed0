"""The map of the catalogue as a page that opens from disk, made from cards and results."""
