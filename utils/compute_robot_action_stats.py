"""Action statistics per robot type: 'lary data stats' under the benchmark's name."""

from lary.cli.data import script

if __name__ == "__main__":
    script("stats")
