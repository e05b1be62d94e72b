"""`kerneld demo`: the demonstration, where kerneld is installed and there is no checkout with a Makefile.

The command executes the module of the demonstration and knows only its name: kerneld imports no client.
"""

from __future__ import annotations

import os
import sys

import click


@click.command(
    name="demo",
    short_help="Show kerneld, a target and an inspector together.",
    help="""Run kerneld, a target and an inspector together. Show the output of each, and check it.

The demonstration takes some ten seconds. It uses a temporary directory and removes it.

\b
Examples:
  kerneld demo

\b
Exit status:
  0  every check has passed        1  a check has failed: one line says which
""",
)
def demo() -> None:
    """Replace this process: pid, signals and exit status are the demonstration's own."""
    os.execv(sys.executable, [sys.executable, "-P", "-m", "target.demo"])
