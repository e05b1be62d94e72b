"""The library that is preloaded: where it cannot be kept, a line says what to set."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kerneld.commands.compiled import BuildError
from kerneld.commands.run.preload import ensure_library


def test_a_cache_of_another_users_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(BuildError, match=r"^cannot use the cache .*: Permission denied \(XDG"):
        ensure_library("f24")


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(BuildError, match="set XDG_CACHE_HOME"):
        ensure_library("f24")
