"""Input and output adapters: what differs between text, pictures, sound, points and their mixtures."""
