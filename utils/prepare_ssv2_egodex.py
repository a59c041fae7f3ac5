"""Cut the clips of SSv2 and EgoDex: 'lary data clip' under the benchmark's name."""

from lary.cli.data import script

if __name__ == "__main__":
    script("clip")
