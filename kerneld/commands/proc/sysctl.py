"""`kerneld sysctl`: tells and sets the settings of a machine that runs. What a setting takes, kerneld decides."""

from __future__ import annotations

import errno
from typing import NoReturn

import click

from kerneld.commands.proc.printing import emit
from kerneld.commands.proc.reading import read_proc
from shared.client.path import default_socket_path
from shared.failure import Failure, Status, client_failures
from shared.option_types import socket_option

_IN_SYSFS = "sys/kernel/mm/"
"""Files of /sys. All others are of /proc/sys, and sysctl(8) writes a dot for their slash."""


@click.command(
    short_help="Tell or set the settings of the machine.",
    help="""Tell or set the settings of the machine, as sysctl(8) does. NAME is a name of sysctl, vm.max_map_count, or
the path of a file under /proc/sys or /sys. Only the superuser sets: root, and the user that runs kerneld. A program
inside (kerneld exec) writes to these files. docs/programs.md lists them.

\b
Examples:
  kerneld sysctl vm.overcommit_memory
  kerneld sysctl vm.overcommit_memory=2 vm.overcommit_ratio=80
  kerneld sysctl /sys/kernel/mm/transparent_hugepage/enabled=always
  kerneld sysctl -a
""",
)
@click.argument("names", metavar="[NAME[=VALUE]...]", nargs=-1)
@click.option("-a", "--all", "all_settings", is_flag=True, help="Tell all settings that you may read.")
@socket_option
def sysctl(names: tuple[str, ...], all_settings: bool, socket_path: str | None) -> None:
    """Print each setting, a new one after its change."""
    if all_settings == bool(names):
        raise click.UsageError("name the settings, or give -a for all of them")
    path = socket_path or default_socket_path()
    for word in _all_names(path) if all_settings else names:
        name, mark, value = word.partition("=")
        file, missing = _file_of(name), f"kerneld has no setting {name}"
        if mark:
            _write(path, name, file, value, missing)
        emit([f"{name} = ".encode() + (value.encode() + b"\n" if mark else read_proc(path, file, missing))])


def _file_of(name: str) -> str:
    """Return kerneld's path of a setting."""
    if "/" not in name:
        return f"sys/{name.replace('.', '/')}"
    return name.removeprefix("/proc").strip("/")


def _all_names(path: str) -> list[str]:
    """Return the names of all settings that the caller may read, as this command takes them."""
    files = read_proc(path, "kerneld/settings").decode().splitlines()
    return [f"/{file}" if file.startswith(_IN_SYSFS) else file.removeprefix("sys/").replace("/", ".") for file in files]


def _write(path: str, name: str, file: str, value: str, missing: str) -> None:
    from shared.client import Process  # noqa: PLC0415

    with client_failures():
        process = Process.attach(path)
        try:
            process.procwrite(file, value.encode() + b"\n")
        except OSError as error:
            _fail(error, name, value, missing)
        finally:
            process.close()


def _fail(error: OSError, name: str, value: str, missing: str) -> NoReturn:
    if error.errno == errno.ENOENT:
        raise Failure(Status.NO_PROCESS, missing)
    if error.errno in (errno.EPERM, errno.EACCES):
        raise Failure(Status.NOT_PERMITTED, f"not permitted to set {name}")
    raise Failure(Status.FAILED, f"{name} does not take {value or 'nothing'}: {error.strerror}")
