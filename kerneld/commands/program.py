"""The program that a person names on the command line of `kerneld run` or `kerneld exec`."""

from __future__ import annotations

import os
import shutil


class ProgramError(Exception):
    """The program cannot be run here: one line for people."""


def find_program(name: str) -> str:
    """Return the path of a program. A `name` without a slash is looked up in $PATH. Raises ProgramError."""
    if "/" in name:
        if not os.path.exists(name):
            raise ProgramError(f"there is no program {name}")
        if os.path.isdir(name) or not os.access(name, os.X_OK):
            raise ProgramError(f"{name} is not a program that may be executed")
        return name
    path = shutil.which(name)
    if path is None:
        raise ProgramError(f"there is no program {name} on the PATH")
    return path
