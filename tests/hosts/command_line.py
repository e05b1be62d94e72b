"""What `make hosts ARGS="…"` can be told. Pure: it reads nothing but its arguments."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FILE_SYSTEMS = ("ext4", "btrfs", "overlay", "tmpfs", "xfs")
"""What /tmp of the guest may be: the referee's programs have their files there. ext4 is the root's own."""
_EXAMPLES = """\
examples:
  make hosts ARGS="-- kerneld referee --programs 2000"
  make hosts ARGS="--kernel 6.12 --tcg -- kerneld referee --programs 2000 --seed a"
  make hosts ARGS="--kernel 6.1 --user -- pytest -q tests/mm"
  make hosts ARGS="--kernel 6.1 --tcg --cpu max,la57=off,pku=off -- make demo"
  make hosts ARGS="--kernel 6.12 --tmp overlay -- kerneld referee"
  kerneld referee --host-command "python -m tests.hosts --tcg --stdin -- kerneld referee --player"

The exit status is the command's; 2 where there is no guest to run it in. What the referee saves is brought out into
build/hosts/out, and so is what the command puts into $HOSTS_OUT.
"""


@dataclass(frozen=True, slots=True)
class Choice:
    """One run: which kernel, on which processor, and what."""

    kernel: str
    """The beginning of a release, as Debian's packages name it: 6.1, 6.12."""
    command: tuple[str, ...]
    tcg: bool = False
    """Emulate the processor even where /dev/kvm works."""
    cpu: str | None = None
    """QEMU's name of a processor, with features; None for the host's, or all that TCG has."""
    processors: int = 2
    memory_mib: int = 3072
    as_user: bool = False
    """Run the command as an ordinary user."""
    tmp: str = "ext4"
    """One of FILE_SYSTEMS."""
    append: str = ""
    """More of the kernel's command line."""
    timeout: float = 7200
    """Seconds; a guest that has not ended by then is ended."""
    cache: Path = Path("build/hosts")
    stdin: bool = False
    """The command reads this program's standard input. What it prints on standard error is on the guest's console."""


def parse(argv: Sequence[str]) -> Choice:
    """Return what was asked for. Raises SystemExit, with what is wrong on stderr, for a line that asks for nothing."""
    parser = argparse.ArgumentParser(
        prog="make hosts",
        description="Run a command of this checkout on a Debian kernel, in a virtual machine.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kernel", default="6.1", metavar="RELEASE", help="6.1 (default), 6.12: Debian's newest of it")
    parser.add_argument("--tcg", action="store_true", help="emulate the processor; it has protection keys and LA57")
    parser.add_argument("--cpu", metavar="MODEL", help="QEMU's -cpu: max,pku=off or qemu64")
    parser.add_argument("--smp", type=_positive, default=2, metavar="N", help="processors (2)")
    parser.add_argument("--memory", type=_positive, default=3072, metavar="MIB", help="memory of the guest (3072)")
    parser.add_argument("--user", action="store_true", help="run the command as an ordinary user")
    parser.add_argument("--tmp", choices=FILE_SYSTEMS, default="ext4", help="the file system of /tmp (ext4)")
    parser.add_argument("--stdin", action="store_true", help="the command reads from here; its stderr is not shown")
    parser.add_argument("--append", default="", metavar="WORDS", help="more of the kernel's command line")
    parser.add_argument("--timeout", type=_positive, default=7200, metavar="SECONDS", help="of the whole run (7200)")
    parser.add_argument("--cache", type=Path, default=Path("build/hosts"), help="where roots and kernels are kept")
    parser.add_argument(
        "command", nargs="+", metavar="-- COMMAND", help="what runs in the checkout, as on its own PATH"
    )
    args = parser.parse_args(argv)
    return Choice(
        kernel=args.kernel,
        command=tuple(args.command),
        tcg=args.tcg,
        cpu=args.cpu,
        processors=args.smp,
        memory_mib=args.memory,
        as_user=args.user,
        tmp=args.tmp,
        append=args.append,
        timeout=args.timeout,
        cache=args.cache,
        stdin=args.stdin,
    )


def _positive(text: str) -> int:
    number = int(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number
