"""What a trained model attends to, as one page that opens from disk."""
