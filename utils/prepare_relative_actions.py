"""Relative actions and their statistics: 'lary data relative' under the benchmark's name."""

from lary.cli.data import script

if __name__ == "__main__":
    script("relative")
