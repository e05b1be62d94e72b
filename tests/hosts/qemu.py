"""The command line of QEMU for one run. Pure, but for `kvm_works`.

The guest has three disks in this order: its root, which the run does not change (`snapshot`), what it is to do (a tar
archive), and room for what it brings out (another). Two ports of a virtio console carry the command's output and its
exit status; the kernel's own messages go to the serial line.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tests.hosts.command_line import Choice

PROGRAM = "qemu-system-x86_64"


@dataclass(frozen=True, slots=True)
class Files:
    """The files of one run."""

    kernel: Path
    initrd: Path
    root: Path
    job: Path
    out: Path
    status: Path
    console: Path


def kvm_works(cpuinfo: str, device: str = "/dev/kvm") -> bool:
    """Tell whether the processor can be lent to a guest: KVM is there, and the processor has what it stands on.

    `cpuinfo` is the text of /proc/cpuinfo. A virtual machine may have a KVM without such a processor, which does in
    software what Debian's kernels then wait for without end.
    """
    if not {"vmx", "svm"} & set(cpuinfo.split()):
        return False
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def command(choice: Choice, files: Files, *, kvm: bool) -> list[str]:
    """Return QEMU's arguments; the command's output comes on QEMU's own stdout."""
    accelerated = kvm and not choice.tcg
    words = ["console=ttyS0", "root=/dev/vda", "rootfstype=ext4", "rw", "init=/sbin/hosts-init", "panic=-1", "quiet"]
    # What a processor might give away is no matter here, and with a page table of the kernel's own an emulated one
    # forgets all translations at each system call.
    words.append("mitigations=off")
    if choice.append:
        words.append(choice.append)
    return [
        *(PROGRAM, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-accel", "kvm" if accelerated else "tcg,thread=multi"),
        *("-cpu", choice.cpu or ("host" if accelerated else "max")),
        *("-smp", str(choice.processors), "-m", f"{choice.memory_mib}M"),
        *("-kernel", str(files.kernel), "-initrd", str(files.initrd), "-append", " ".join(words)),
        *("-drive", _disk(files.root, "snapshot=on")),
        *("-drive", _disk(files.job, "readonly=on")),
        *("-drive", _disk(files.out)),
        *("-serial", f"file:{files.console}"),
        *("-chardev", "stdio,id=output,signal=off", "-chardev", f"file,id=status,path={files.status}"),
        *("-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=output,nr=1", "-device", "virtserialport,chardev=status,nr=2"),
        *("-object", "rng-random,id=random,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=random"),
    ]


def _disk(file: Path, *options: str) -> str:
    # A comma in a file's name is written twice.
    return ",".join(("if=virtio", "format=raw", *options, f"file={str(file).replace(',', ',,')}"))
