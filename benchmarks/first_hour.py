"""The first hour on a GPU: what no CPU can show, step by step, as one command that resumes where it stopped.

    python benchmarks/first_hour.py OUT [--device cuda] [--steps 0 4 6]
    python benchmarks/first_hour.py OUT --device cpu      # the script itself, on tiny data, in minutes

Steps 0 to 7 need one GPU, 8 to 10 more. Each writes a log into OUT/logs; what passed is in OUT/steps.json and isn't
done again. The table at the end names what passed, what failed with its log, and pairs/s and clips/s beside those of
the bare forward pass. docs/gpu.md says how to read it. The steps, most of which are tests, are in tests/hour.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.hour import main

if __name__ == "__main__":
    sys.exit(main(str(__doc__)))
