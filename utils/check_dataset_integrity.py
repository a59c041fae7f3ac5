"""Check that data are whole: 'lary data check' under the benchmark's name."""

import sys

sys.path.insert(0, f"{sys.path[0]}/..")  # a checkout works without installation
from lary.cli import main

if __name__ == "__main__":  # worker processes import this file again
    main(["data", "check", *sys.argv[1:]])
