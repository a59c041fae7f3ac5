"""The command line of lary."""

from lary.cli.app import main

__all__ = ["main"]
