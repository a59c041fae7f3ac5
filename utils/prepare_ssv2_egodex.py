"""Cut the clips of SSv2 and EgoDex: 'lary data clip' under the benchmark's name."""

import sys

sys.path.insert(0, f"{sys.path[0]}/..")  # a checkout works without installation
from lary.cli import main

if __name__ == "__main__":  # worker processes import this file again
    main(["data", "clip", *sys.argv[1:]])
