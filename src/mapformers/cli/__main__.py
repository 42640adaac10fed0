"""`python -m mapformers.cli`, which torchrun needs."""

from mapformers.cli.main import main

main()
