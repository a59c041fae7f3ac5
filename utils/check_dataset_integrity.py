"""Check that data are whole: 'lary data check' under the benchmark's name."""

from lary.cli.data import script

if __name__ == "__main__":
    script("check")
