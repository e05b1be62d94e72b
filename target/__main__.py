"""`python -m target`: the target program."""

from __future__ import annotations

import signal

# Before the tour begins there is nothing to clean up: a Ctrl+C during the imports ends the program without a traceback.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from target.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
