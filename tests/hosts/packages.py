"""Debian's packages, by the apt that this machine has: no server is named here.

Pure but for `ask` and `download`: what apt prints is parsed by functions of its text.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.hosts.trouble import HostsError

SUITE = "bookworm"
INCLUDED = (
    *("python3", "python3-venv", "make", "gcc", "libc6-dev", "procps", "iproute2", "util-linux"),
    *("initramfs-tools", "kmod", "e2fsprogs", "btrfs-progs", "xfsprogs"),
)
"""What the guest's root has beside the essential packages."""
INDEX_FORMAT = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
_KERNEL = re.compile(r"linux-image-(?P<release>\d+\.\d+)\.\S+-cloud-amd64")


def ask(*command: str) -> str:
    """Return what a program prints. Raises HostsError where it is missing or fails."""
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, errors="replace")
    except FileNotFoundError:
        raise HostsError(f"{command[0]} is missing") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout).strip().splitlines()[-1:] or [f"exit status {error.returncode}"]
        raise HostsError(f"{command[0]} failed: {last[0]}") from None
    return done.stdout


def mirror(index_targets: str, suite: str = SUITE) -> str:
    """Return the address that debootstrap takes the suite from.

    `index_targets` is what `apt-get indextargets` prints in INDEX_FORMAT. Raises HostsError where it has no such suite.
    """
    for line in index_targets.splitlines():
        address, release, component = line.rsplit(" ", 2)
        if release == suite and component == "main":
            return address
    raise HostsError(f"apt has no source of Debian {suite}: its root is made from one")


def kernels(names: str, release: str) -> list[str]:
    """Return the packages of a release's kernels, which `apt-cache pkgnames` prints: those for clouds, all signed.

    They have what the referee can tell apart as Debian's other kernels have it, and are a third of their size.
    """
    found = {match[0] for name in names.split() if (match := _KERNEL.fullmatch(name)) and match["release"] == release}
    return sorted(found)


def newest(shown: str) -> str:
    """Return the package of the highest version, of what `apt-cache show` prints of several, newest ABI last.

    Raises HostsError where it shows none.
    """
    best: tuple[tuple[int, ...], str] | None = None
    for paragraph in shown.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if re.match(r"(Package|Version): ", line))
        if len(fields) == 2:
            key = (_numbers(fields["Version"]), fields["Package"])
            best = key if best is None else max(best, key)
    if best is None:
        raise HostsError("apt shows no kernel (apt-get update gets its lists)")
    return best[1]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def find_kernel(release: str) -> str:
    """Return the package of Debian's newest kernel of a release. Raises HostsError where there is none."""
    found = kernels(ask("apt-cache", "pkgnames", f"linux-image-{release}."), release)
    if not found:
        raise HostsError(f"apt has no kernel {release} (6.1 and 6.12 are Debian {SUITE}'s)")
    return newest(ask("apt-cache", "show", "--no-all-versions", *found))


def release_of(package: str) -> str:
    """Return the release, as uname says it, of a kernel's package."""
    return package.removeprefix("linux-image-")


def download(package: str, folder: Path) -> Path:
    """Get a package's file into a folder."""
    done = subprocess.run(["apt-get", "download", package], cwd=folder, check=False, capture_output=True, text=True)
    files = sorted(folder.glob(f"{package}_*.deb"))
    if done.returncode or not files:
        raise HostsError(f"apt-get cannot get {package}: {_last_line(done.stderr)}")
    return files[-1]


def _last_line(text: str) -> str:
    lines: Iterable[str] = (line for line in reversed(text.splitlines()) if line)
    return next(iter(lines), "it does not say why")
