"""The bundle for Gradescope: a zip with setup.sh, run_autograder, kerneld itself and the course's checklist.

Owns the two scripts. kerneld is in the bundle as it is here: Gradescope's machine needs no copy from elsewhere, only
the libraries that kerneld imports. Source: gradescope-autograders.readthedocs.io, Autograder Specifications.
"""

from __future__ import annotations

import shlex
import zipfile
from importlib import metadata
from pathlib import Path

import shared
from kerneld.commands.grade.checklist import NAME, Checklist, checklist_text

_PACKAGES = ("kerneld", "inspector", "target", "shared")
_LEFT_OUT = ("__pycache__",)
_SETUP = """#!/usr/bin/env bash
# Installs what kerneld needs. Gradescope runs it once, when the image is built.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install -y --no-install-recommends python3 gcc make libc6-dev
python=python3
if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    # Ubuntu 22.04, Gradescope's usual image, has 3.10; 3.11 is beside it, in universe.
    python=python3.11
fi
apt-get install -y --no-install-recommends "$python" "$python-venv" "$python-dev" ||
    {{ echo 'kerneld needs Python 3.11, which this image does not have: choose a newer one' >&2; exit 1; }}
"$python" -m venv /autograder/venv
/autograder/venv/bin/pip install --no-cache-dir {requirements}
"""
_RUN = """#!/usr/bin/env bash
# Grades the submission. Gradescope runs it for each one.
set -euo pipefail
export PYTHONPATH=/autograder/source/lib
mkdir -p /autograder/results
exec /autograder/venv/bin/python -m kerneld grade --checklist /autograder/source/{checklist} \\
    --json /autograder/results/results.json /autograder/submission
"""


def write_bundle(path: Path, checklist: Checklist) -> None:
    """Write the zip. Raises OSError."""
    top = Path(shared.__file__).resolve().parent.parent
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        _add(bundle, "setup.sh", _SETUP.format(requirements=" ".join(map(shlex.quote, requirements()))), 0o755)
        _add(bundle, "run_autograder", _RUN.format(checklist=NAME), 0o755)
        _add(bundle, NAME, checklist_text(checklist), 0o644)
        for package in _PACKAGES:
            for file in sorted((top / package).rglob("*")):
                if file.is_file() and not any(part in _LEFT_OUT for part in file.parts):
                    bundle.write(file, f"lib/{file.relative_to(top)}")


def requirements() -> list[str]:
    """Return what kerneld needs to run, as pip reads it."""
    needed = metadata.requires("kerneld") or []
    return [line for line in needed if "extra ==" not in line]


def _add(bundle: zipfile.ZipFile, name: str, text: str, mode: int) -> None:
    entry = zipfile.ZipInfo(name, (2024, 1, 1, 0, 0, 0))
    entry.external_attr = (0o100000 | mode) << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    bundle.writestr(entry, text)
