"""The program that a person names on the command line of `kerneld run` or `kerneld exec`."""

from __future__ import annotations

import os


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
    # As shutil.which(), whose module takes longer to import than the rest of `kerneld exec` to run.
    directories = os.environ.get("PATH", os.defpath)
    for directory in directories.split(os.pathsep) if directories else ():
        path = os.path.join(directory, name)
        if os.access(path, os.X_OK) and not os.path.isdir(path):
            return path
    raise ProgramError(f"there is no program {name} on the PATH")
