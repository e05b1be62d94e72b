"""One run: a guest is started, its output passed on as it comes, its exit status read."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.hosts import job, qemu
from tests.hosts.command_line import Choice
from tests.hosts.root import GuestRoot, Say
from tests.hosts.trouble import HostsError

PROJECT = Path(__file__).resolve().parents[2]
_NEEDED = (
    (qemu.PROGRAM, "qemu-system-x86"),
    ("debootstrap", "debootstrap"),
    ("mke2fs", "e2fsprogs"),
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
)


def check_tools() -> None:
    """Raises HostsError where this machine or user cannot make a guest."""
    if os.geteuid() != 0:
        raise HostsError("only root can make the guest's root (debootstrap)")
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    for program, package in _NEEDED:
        if shutil.which(program, path=path) is None:
            raise HostsError(f"{program} is missing (on Debian: apt install {package})")


def run(choice: Choice, say: Say) -> int:
    """Run the command in a guest; returns its exit status. Raises HostsError where there is no guest, or no status."""
    check_tools()
    cache = choice.cache.absolute()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        # Two may make a run each at a time; what is kept is made by one.
        fcntl.flock(lock, fcntl.LOCK_EX)
        kernel = GuestRoot(cache, PROJECT, say).kernel(choice.kernel)
    kvm = qemu.kvm_works(Path("/proc/cpuinfo").read_text())
    say(f"Linux {kernel.name}, {'KVM' if kvm and not choice.tcg else 'TCG'}: {' '.join(choice.command)}")
    with tempfile.TemporaryDirectory(prefix="run-", dir=cache) as name:
        folder = Path(name)
        files = qemu.Files(
            kernel=kernel / "vmlinuz",
            initrd=kernel / "initrd",
            root=kernel / "root.ext4",
            job=folder / "job.tar",
            out=folder / "out.tar",
            status=folder / "status",
            console=folder / "console",
        )
        job.write(files.job, choice, PROJECT)
        with files.out.open("wb") as file:
            file.truncate(job.OUT_BYTES)
        _boot(choice, files, kvm=kvm)
        status = files.status.read_text().strip() if files.status.exists() else ""
        for each in job.bring_out(files.out, cache / "out"):
            say(f"brought out: {cache / 'out' / each}")
        if status != "0":
            # With `stdin` it also has what the command has printed on standard error.
            shutil.copy(files.console, cache / "console")
        if not status:
            raise HostsError(f"the guest ended without an exit status: see {cache / 'console'}")
        if status != "0" and choice.stdin:
            say(f"the command ended with status {status}: see {cache / 'console'}")
        return int(status)


def _boot(choice: Choice, files: qemu.Files, *, kvm: bool) -> None:
    # Its stdin stays open: where QEMU reads the end of it the guest's port is unplugged.
    stdin = None if choice.stdin else subprocess.PIPE
    with subprocess.Popen(qemu.command(choice, files, kvm=kvm), stdin=stdin) as guest:
        try:
            guest.wait(choice.timeout)
        except subprocess.TimeoutExpired:
            guest.kill()
            raise HostsError(f"the guest has not ended within {choice.timeout:g} seconds") from None
        except BaseException:
            guest.kill()
            raise
    if guest.returncode:
        raise HostsError(f"{qemu.PROGRAM} ended with status {guest.returncode}")
