"""`python -m kerneld`."""

from __future__ import annotations

from kerneld.cli import main

main()
