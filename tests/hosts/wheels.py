"""The guest's Python packages: wheels that pip gets here, for Debian bookworm's Python, which installs them offline."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from tests.hosts.trouble import HostsError

PYTHON = "3.11"
EXTRAS = ("test", "perfetto")
_GLIBC_MINORS = (17, 24, 27, 28, 34)
"""Of the wheels that Debian bookworm's glibc, 2.36, can load, those that projects build for."""


def requirements(pyproject: str) -> list[str]:
    """Return what runs and tests the project, of the text of pyproject.toml, and what installs it."""
    data = tomllib.loads(pyproject)
    project = data["project"]
    wanted = [*project["dependencies"], *data["build-system"]["requires"]]
    for extra in EXTRAS:
        wanted += project["optional-dependencies"][extra]
    return wanted


def pip_command(folder: Path, wanted: list[str], python: str = sys.executable) -> list[str]:
    """Return the command that gets the wheels into a folder, for the guest's Python whatever the one here is."""
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in _GLIBC_MINORS] + ["manylinux2014_x86_64"]
    return [
        *(python, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", "download"),
        *("--dest", str(folder), "--only-binary", ":all:", "--implementation", "cp", "--python-version", PYTHON),
        *(word for platform in platforms for word in ("--platform", platform)),
        *wanted,
    ]


def download(folder: Path, wanted: list[str]) -> None:
    """Get the wheels. Raises HostsError where pip cannot."""
    done = subprocess.run(pip_command(folder, wanted), check=False, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise HostsError(f"pip cannot get the guest's packages: {(errors or ['it does not say why'])[-1]}")
