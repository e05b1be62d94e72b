"""The command that the tour tells people to paste."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from shared import launcher as module
from target.inspector_command import inspector_command


@pytest.fixture(autouse=True)
def no_socket_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KERNELD_SOCKET", raising=False)


def make_checkout(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    launcher = directory / "bin" / "inspector"
    launcher.parent.mkdir()
    launcher.write_text("#!/bin/sh\n")
    launcher.chmod(0o755)
    monkeypatch.setattr(module, "_CHECKOUT", directory)
    return launcher


@pytest.mark.parametrize(("inside", "word"), [(".", "bin/inspector"), ("bin", "./inspector")])
def test_a_checkout_is_named_as_seen_from_here(
    inside: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkout(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path / inside)

    assert inspector_command(42, 0x1000, 0x3000) == f"{word} 42 0x1000 0x3000"


def test_elsewhere_the_launcher_has_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here and there"
    here.mkdir()
    launcher = make_checkout(here, monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert shlex.split(inspector_command(42, 0x1000, 0x3000))[0] == "here and there/bin/inspector"
    monkeypatch.chdir("/")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")

    assert shlex.split(inspector_command(42, 0x1000, 0x3000))[0] == str(launcher)


def test_an_installed_inspector_is_found_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = make_checkout(tmp_path, monkeypatch)
    monkeypatch.setattr(module, "_CHECKOUT", tmp_path / "nowhere")
    monkeypatch.setenv("PATH", str(launcher.parent))

    assert inspector_command(42, 0x1000, 0x3000) == "inspector 42 0x1000 0x3000"


def test_one_that_is_installed_beside_the_interpreter_is_found_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = make_checkout(tmp_path, monkeypatch)
    monkeypatch.setattr(module, "_CHECKOUT", tmp_path / "nowhere")
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    monkeypatch.setattr(sys, "executable", str(launcher.with_name("python3")))

    assert inspector_command(42, 0x1000, 0x3000) == f"{launcher} 42 0x1000 0x3000"


def test_another_socket_goes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELD_SOCKET", "/run/a b.sock")
    assert inspector_command(42, 0x1000, 0x3000).startswith("KERNELD_SOCKET='/run/a b.sock' ")

    assert inspector_command(42, 0x1000, 0x3000, "/run/c.sock").startswith("KERNELD_SOCKET=/run/c.sock ")
