"""`kerneld demo`: the demonstration, where kerneld is installed and there is no checkout with a Makefile.

It becomes the demonstration's program and knows nothing of it but its module's name: kerneld stands under its clients.
"""

from __future__ import annotations

import os
import sys

import click


@click.command(
    name="demo",
    short_help="Show kerneld, a target and an inspector together.",
    help="""Run kerneld, a target and an inspector together, show what each prints, and check it.

It takes some ten seconds, touches nothing of yours, and leaves nothing behind.

\b
Examples:
  kerneld demo

\b
Exit status:
  0  all was as it should be        1  something was not: one line says what
""",
)
def demo() -> None:
    """Replace this process: pid, signals and exit status are the demonstration's own."""
    os.execv(sys.executable, [sys.executable, "-P", "-m", "target.demo"])
