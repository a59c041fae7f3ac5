"""Entry point of ``python -m lary.cli``."""

from lary.cli import main

main()
