"""`python -m tests.hostile`: the long run of the fuzzers."""

import sys

from tests.hostile.long_run import main

if __name__ == "__main__":
    sys.exit(main())
