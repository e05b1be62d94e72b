"""What a guest is to do, as a tar archive: the checkout in /src, the command and its settings in /job; and what it
brings out, another.
"""

from __future__ import annotations

import io
import shlex
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from tests.hosts.command_line import Choice
from tests.hosts.trouble import HostsError

OUT_BYTES = 64 << 20
"""Room for what a guest brings out."""


def settings(choice: Choice) -> str:
    """Return what hosts-init reads beside the command."""
    flags = {"AS_USER": choice.as_user, "STDIN": choice.stdin}
    lines = [f"{name}={'yes' if flag else 'no'}" for name, flag in flags.items()]
    return "\n".join([*lines, f"FILE_SYSTEM={choice.tmp}", ""])


def script(choice: Choice) -> str:
    """Return the command as a shell script."""
    return f"exec {shlex.join(choice.command)}\n"


def checkout_files(project: Path) -> list[str]:
    """Return the files of a checkout, changed and new ones too, but nothing that git ignores."""
    command = ("git", "-C", str(project), "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    try:
        done = subprocess.run(command, check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        raise HostsError(f"{project} is no checkout that git can list: its files go into the guest") from None
    names = [name.decode() for name in done.stdout.split(b"\0") if name]
    return [name for name in names if (project / name).is_symlink() or (project / name).exists()]


def write(archive: Path, choice: Choice, project: Path) -> None:
    """Write the archive."""
    with tarfile.open(archive, "w") as tar:
        for name in checkout_files(project):
            tar.add(project / name, f"src/{name}", recursive=False, filter=_of_root)
        for name, text in (("job/settings", settings(choice)), ("job/command", script(choice))):
            data = text.encode()
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))


def _of_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    return info


def bring_out(archive: Path, folder: Path) -> list[str]:
    """Unpack what a guest has brought out; returns the names of its files."""
    try:
        with tarfile.open(archive, "r:") as tar:
            members = [member for member in tar.getmembers() if member.isfile()]
            # Before Python 3.11.4 there is no such filter; the archive is made by this program's own other half.
            safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            tar.extractall(folder, members, **safe)
    except tarfile.ReadError:
        return []
    return sorted(member.name.removeprefix("./") for member in members)
