"""`python -m kerneld`: what `kerneld` runs when it is not installed."""

from __future__ import annotations

import signal

# Until the daemon notes signals for itself there is nothing to undo: Ctrl+C during the imports is the plain end.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from kerneld.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
