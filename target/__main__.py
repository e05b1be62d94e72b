"""`python -m target`: the target program."""

from __future__ import annotations

from target.cli import main

if __name__ == "__main__":
    main()
