"""What apt and pip are asked, and what is made of what apt prints."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.hosts import packages, wheels
from tests.hosts.trouble import HostsError

NAMES = """linux-image-6.1.0-9-cloud-amd64
linux-image-6.1.0-56-cloud-amd64
linux-image-6.1.0-56-cloud-amd64-unsigned
linux-image-6.1.0-56-amd64
linux-image-6.12.117+deb12-cloud-amd64
linux-image-6.12-cloud-amd64
"""
SHOWN = """Package: linux-image-6.1.0-9-cloud-amd64
Version: 6.1.9-1

Package: linux-image-6.1.0-56-cloud-amd64
Version: 6.1.192-2
Description: a kernel
"""


def test_the_mirror_is_that_of_the_suite() -> None:
    targets = "https://other.example/ nodistro main\nhttp://m.example/debian/ bookworm main\n"
    assert packages.mirror(targets) == "http://m.example/debian/"
    with pytest.raises(HostsError, match="no source of Debian trixie"):
        packages.mirror(targets, "trixie")


def test_a_releases_kernels_are_the_signed_ones_for_clouds() -> None:
    assert packages.kernels(NAMES, "6.1") == ["linux-image-6.1.0-56-cloud-amd64", "linux-image-6.1.0-9-cloud-amd64"]
    assert packages.kernels(NAMES, "6.12") == ["linux-image-6.12.117+deb12-cloud-amd64"]
    assert packages.kernels(NAMES, "6.8") == []


def test_the_newest_goes_by_version_not_by_name() -> None:
    assert packages.newest(SHOWN) == "linux-image-6.1.0-56-cloud-amd64"
    with pytest.raises(HostsError, match="apt shows no kernel"):
        packages.newest("")


def test_a_program_that_fails_is_told_in_one_line() -> None:
    with pytest.raises(HostsError, match=r"failed: \w+Error: no"):
        packages.ask(sys.executable, "-c", "raise RuntimeError('no')")
    with pytest.raises(HostsError, match="/nowhere/apt is missing"):
        packages.ask("/nowhere/apt")


def test_the_guest_gets_what_the_project_asks_for() -> None:
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    wanted = wheels.requirements(pyproject)
    assert {"click>=8.1", "pytest>=8.0", "perfetto>=0.56", "setuptools>=68"} <= set(wanted)
    assert not any(name.startswith("kerneld") for name in wanted)


def test_pip_gets_wheels_for_the_guests_python() -> None:
    command = wheels.pip_command(Path("/w"), ["click>=8.1"], "python")
    assert command[-1] == "click>=8.1"
    assert command[command.index("--python-version") + 1] == "3.11"
    assert command[command.index("--only-binary") + 1] == ":all:"
