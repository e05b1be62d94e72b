"""The program `kerneld`, also as `python -m kerneld`. It imports the command line only if that is needed."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run kerneld's command line and exit with its status."""
    # Until the daemon notes signals for itself there is nothing to undo: Ctrl+C during the imports is the plain end.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.argv[1:2] == ["exec"]:
        from kerneld.commands.exec.quick import run_quickly  # noqa: PLC0415

        run_quickly(sys.argv[2:])
    from kerneld.cli import main as run_command_line  # noqa: PLC0415

    run_command_line()


if __name__ == "__main__":
    main()
