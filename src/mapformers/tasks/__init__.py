"""Data and reference scores: where the bytes come from, and what simple models make of them."""
