"""Entry point of ``python -m lary.cli``."""

from lary.cli.app import main

main()
