"""bin/make-venv: which Python becomes the project's own. The Pythons here are small programs that answer as one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

MAKE_VENV = Path(__file__).parents[2] / "bin" / "make-venv"
ANSWERS = """#!/bin/sh
case "$*" in
  *version_info*) exit {old} ;;
  *realpath*) echo "$0" ;;
  *CONFIG_ARGS*) exit {optimised} ;;
  *without-pip*) mkdir "$4" ;;
  "-m venv"*) [ {has_pip} = 1 ] && mkdir "$3" ;;
  "-m pip"*) true ;;
esac && echo {name} "$*" >> {log}
"""


class Pythons:
    """Two Pythons, the PATH's and a distribution's, and what they were asked to make."""

    def __init__(self, folder: Path) -> None:
        self.made = folder / "venv"
        self._folder = folder
        self._log = folder / "log"

    def add(self, name: str, *, old: int = 0, optimised: int = 0, has_pip: int = 1) -> None:
        (self._folder / name).mkdir()
        python = self._folder / name / "python3"
        text = ANSWERS.format(name=name, old=old, optimised=optimised, has_pip=has_pip, log=self._log)
        python.write_text(text)
        python.chmod(0o755)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environ = os.environ | {
            "PATH": f"{self._folder / 'path'}:{os.environ['PATH']}",
            "DISTRIBUTION_PYTHON": str(self._folder / "distribution" / "python3"),
        }
        command = [str(MAKE_VENV), str(self.made), *arguments]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)

    def makers(self) -> list[str]:
        """Return who was asked to make something, one word a request."""
        lines = self._log.read_text().splitlines()
        return [line.split()[0] for line in lines if " -m " in line]


@pytest.fixture
def pythons(tmp_path: Path) -> Pythons:
    return Pythons(tmp_path)


def test_a_python_built_without_optimisation_gives_way_and_a_line_says_so(pythons: Pythons) -> None:
    pythons.add("path")
    pythons.add("distribution")
    done = pythons.run()
    assert done.returncode == 0
    assert "without optimisation" in done.stdout
    assert pythons.makers() == ["distribution"]
    assert pythons.made.is_dir()


def test_a_distribution_that_has_pip_in_another_package_gets_it_from_the_other_python(pythons: Pythons) -> None:
    pythons.add("path")
    pythons.add("distribution", has_pip=0)
    assert pythons.run().returncode == 0
    assert pythons.makers() == ["distribution", "path"]
    assert pythons.made.is_dir()


@pytest.mark.parametrize("reason", ["it is optimised", "it was named", "the other is old", "there is no other"])
def test_the_python_of_the_path_stays(pythons: Pythons, reason: str) -> None:
    pythons.add("path", optimised=int(reason == "it is optimised"))
    if reason != "there is no other":
        pythons.add("distribution", old=int(reason == "the other is old"))
    done = pythons.run(*(["python3"] if reason == "it was named" else []))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert pythons.makers() == ["path"]


def test_a_python_that_is_too_old_makes_nothing(pythons: Pythons) -> None:
    pythons.add("path", old=1)
    pythons.add("distribution")
    done = pythons.run()
    assert done.returncode == 1
    assert "'python3' is not Python 3.11 or newer" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not pythons.made.exists()


def test_a_python_that_makes_no_environment_leaves_none(pythons: Pythons) -> None:
    pythons.add("path", optimised=1, has_pip=0)
    done = pythons.run()
    assert done.returncode == 1
    assert "apt install python3-venv" in done.stderr
    assert not pythons.made.exists()
