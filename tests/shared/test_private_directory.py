"""A private kerneld starts also where the path of TMPDIR is long."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from shared.private_directory import private_directory


@pytest.mark.parametrize("length", [10, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70, 90, 200])
def test_a_socket_has_room(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as top:
        place = Path(top) / ("x" * max(1, length - len(top) - 1))
        place.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        with private_directory("kerneld-quiz-") as directory:
            assert os.stat(directory).st_mode & 0o777 == 0o700
            path = Path(directory) / "kerneld" / "kerneld.sock"
            path.parent.mkdir()
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(str(path))
            assert directory.startswith(str(place)) == (length <= 64)
        assert not Path(directory).exists()
