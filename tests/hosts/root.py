"""The guest's root and its kernels: made once, of Debian's packages, and kept.

`cache/` has `root/` (debootstrap's, with the project's Python packages in /opt/venv), `debs/`, `wheels/`, and of each
kernel `RELEASE/` with `vmlinuz`, `initrd` and `root.ext4`, the image of that root with that kernel's modules. A stamp
beside each says of what it was made; where that is no longer so it is made again.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.hosts import packages, wheels
from tests.hosts.trouble import HostsError

INIT = Path(__file__).with_name("hosts-init")
IMAGE_MIB = 6144
"""Sparse: what is in use of it is the root's size."""
_MODULES = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic")
Say = Callable[[str], None]


def run(*command: str | Path, log: Path) -> None:
    """Run a program; what it prints is in `log`. Raises HostsError where it is missing or fails."""
    try:
        with log.open("ab") as file:
            done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    except FileNotFoundError:
        raise HostsError(f"{command[0]} is missing") from None
    if done.returncode:
        raise HostsError(f"{Path(command[0]).name} failed with status {done.returncode}: see {log}")


class GuestRoot:
    """The cache in a folder."""

    def __init__(self, folder: Path, project: Path, say: Say) -> None:
        """`project` is the checkout whose Python packages the guest has."""
        self._folder = folder
        self._project = project
        self._say = say
        self._root = folder / "root"
        self._log = folder / "made.log"

    def kernel(self, release: str) -> Path:
        """Return the folder of a kernel: `vmlinuz`, `initrd`, `root.ext4`. Makes what is not there."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._ensure("debootstrap", " ".join(packages.INCLUDED), self._debootstrap)
        pyproject = (self._project / "pyproject.toml").read_text()
        wanted = wheels.requirements(pyproject)
        self._ensure("venv", _digest(*wanted), lambda: self._make_venv(wanted))
        name = packages.find_kernel(release)
        folder = self._folder / packages.release_of(name)
        made_of = _digest(name, self._stamp("debootstrap"), self._stamp("venv"), INIT.read_text())
        self._ensure(folder.name, made_of, lambda: self._make_kernel(name, folder))
        return folder

    def _stamp(self, name: str) -> str:
        file = self._folder / f"{name}.stamp"
        return file.read_text() if file.exists() else ""

    def _ensure(self, name: str, made_of: str, make: Callable[[], None]) -> None:
        if self._stamp(name) != made_of:
            make()
            (self._folder / f"{name}.stamp").write_text(made_of)

    def _debootstrap(self) -> None:
        self._say(f"making a root of Debian {packages.SUITE}; this takes minutes, once")
        address = packages.mirror(packages.ask("apt-get", "indextargets", "--format", packages.INDEX_FORMAT))
        shutil.rmtree(self._root, ignore_errors=True)
        included = "--include=" + ",".join(packages.INCLUDED)
        # In a mount namespace: what it mounts in the root goes with it, also where it is killed.
        words = ("--variant=minbase", included, packages.SUITE, self._root, address)
        run("unshare", "--mount", "debootstrap", *words, log=self._log)
        for archive in (self._root / "var/cache/apt/archives").glob("*.deb"):
            archive.unlink()
        run("chroot", self._root, "useradd", "--create-home", "student", log=self._log)

    def _make_venv(self, wanted: list[str]) -> None:
        self._say("putting the project's Python packages into it")
        for folder in (self._folder / "wheels", self._root / "opt/venv", self._root / "opt/wheels"):
            shutil.rmtree(folder, ignore_errors=True)
        wheels.download(self._folder / "wheels", wanted)
        shutil.copytree(self._folder / "wheels", self._root / "opt/wheels")
        run("chroot", self._root, "python3", "-m", "venv", "/opt/venv", log=self._log)
        pip = ("/opt/venv/bin/pip", "install", "--no-index", "--find-links", "/opt/wheels", "--no-cache-dir", *wanted)
        run("chroot", self._root, *pip, log=self._log)
        shutil.rmtree(self._root / "opt/wheels")
        # The checkout comes with each run: its packages are found where it will lie, as those of `pip install -e` are.
        for site in (self._root / "opt/venv/lib").glob("python*/site-packages"):
            (site / "checkout.pth").write_text("/src\n")
        # hosts-init gives them pyproject.toml's time: make need not install anything. (What only `make check` needs is
        # not there.) mke2fs has 32 bits for times, so that none made here is later than every checkout's.
        for purpose in ("-to-run", "-to-test", ""):
            (self._root / f"opt/venv/.installed{purpose}").touch()

    def _make_kernel(self, package: str, folder: Path) -> None:
        self._say(f"getting {package}")
        debs = self._folder / "debs"
        debs.mkdir(exist_ok=True)
        release = packages.release_of(package)
        for old in (self._root / "boot", self._root / "usr/lib/modules", folder):
            shutil.rmtree(old, ignore_errors=True)
        unpacked = folder / "package"
        folder.mkdir()
        run("dpkg-deb", "-x", packages.download(package, debs), unpacked, log=self._log)
        shutil.copy(unpacked / "boot" / f"vmlinuz-{release}", folder / "vmlinuz")
        # Not unpacked in the root: /lib is a directory in the package and a link there.
        (unpacked / "boot").rename(self._root / "boot")
        (unpacked / "lib/modules").rename(self._root / "usr/lib/modules")
        shutil.rmtree(unpacked)
        run("chroot", self._root, "depmod", release, log=self._log)
        settings = self._root / "etc/initramfs-tools"
        (settings / "modules").write_text("\n".join(_MODULES) + "\n")
        (settings / "conf.d/hosts").write_text("MODULES=list\nRESUME=none\nCOMPRESS=gzip\n")
        run("chroot", self._root, "mkinitramfs", "-o", "/boot/initrd", release, log=self._log)
        shutil.copy(self._root / "boot/initrd", folder / "initrd")
        shutil.copy(INIT, self._root / "sbin/hosts-init")
        (self._root / "sbin/hosts-init").chmod(0o755)
        self._say("making its disk")
        image = folder / "root.ext4"
        with image.open("wb") as file:
            file.truncate(IMAGE_MIB << 20)
        run("mke2fs", "-q", "-F", "-t", "ext4", "-d", self._root, image, log=self._log)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
