"""`python -m tests.hostile`: the long run of the fuzzers."""

import signal
import sys

from tests.hostile.long_run import main

if __name__ == "__main__":
    # As Ctrl+C: the pieces that run, and what they keep in files, are put away.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("fuzz: interrupted")
