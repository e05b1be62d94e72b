"""`python -m inspector`."""

from __future__ import annotations

import signal

# Until a table is open there is nothing to close: a Ctrl+C during the imports ends the program without a traceback.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from inspector.cli import main  # noqa: E402

main()
