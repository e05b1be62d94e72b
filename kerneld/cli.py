"""The command line of kerneld: `start` is the daemon, the other commands are clients of it like any program.

It owns words for people and exit statuses. What a command does not need is imported by those that do: numpy and
structlog cost more than all of `status` does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from kerneld.failure import Commands, Failure, Status
from kerneld.inspect_dump import inspect_dump
from kerneld.run import run
from shared.client.errors import KerneldError, KerneldGone, KerneldUnavailable
from shared.client.path import default_socket_path

PAGE_SIZE = 4096
SIZE_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
PS_COLUMNS = ("PID", "UID", "THREADS", "VSZ", "RSS", "STATE", "COMMAND")


class Size(click.ParamType[int]):
    """A number of bytes, with K, M, G or T for powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes; a usage error where it is no size, or no size that memory can have."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,15})([KMGT]?)(?:i?B)?", value, re.IGNORECASE | re.ASCII)
        if match is None:
            self.fail(f"'{value}' is not a size: say 256M, or 1G", param, ctx)
        size_bytes = int(match[1]) * SIZE_UNITS[match[2].upper()]
        if size_bytes % PAGE_SIZE:
            self.fail(f"'{value}': memory comes in whole pages of 4K", param, ctx)
        return size_bytes


socket_option = click.option(
    "--socket",
    "socket_path",
    metavar="PATH",
    help="Where kerneld listens. [$KERNELD_SOCKET, $XDG_RUNTIME_DIR/kerneld/kerneld.sock or "
    "/tmp/kerneld-<uid>/kerneld.sock]",
)

HELP = """A kernel in user space whose page tables can be watched.

Without a command kerneld starts, in the foreground.

\b
Examples:
  kerneld                           start, until Ctrl+C
  kerneld start --detach            start in the background: returns once it is ready
  kerneld status                    is it running, and how is it doing
  kerneld ps                        the processes it serves
  kerneld maps 4242                 what process 4242 has mapped
  kerneld run -- ./inspector 4242 0x7f0000000000 0x7f0000010000
                                    a C program with the shadow page table's system calls
  kerneld stop                      end it, and wait until it has ended
  kerneld referee                   compare it with this host's kernel

\b
Exit status:
  0  done
  1  failed (another kerneld runs on that socket)      2  wrong usage
  3  kerneld does not run                              4  kerneld went away
  5  no such process, or no such file of one           6  not permitted
  7  kerneld cannot start there, or not so big
  8  the program of kerneld run cannot be run here
"""


def print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    """Print the version and end."""
    if not wanted:
        return
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415  (slow, for this alone)

    try:
        click.echo(f"kerneld {version('kerneld')}")
    except PackageNotFoundError:
        click.echo("kerneld (run from a checkout, not installed)")
    ctx.exit()


@click.group(cls=Commands, help=HELP, context_settings=CONTEXT)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=print_version, help="Print the version."
)
def cli() -> None:
    """Nothing of its own to do: the commands do it."""


def main() -> None:
    """Run kerneld's command line and exit with its status."""
    # Until the daemon notes signals for itself there is nothing to undo: Ctrl+C is the plain end of a program.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    cli(prog_name="kerneld")


cli.add_command(run)
cli.add_command(inspect_dump)


@cli.command(
    help="""Start kerneld; SIGINT (Ctrl+C), SIGTERM or SIGHUP ends it.

\b
Examples:
  kerneld start
  kerneld start --ram 256M --swap 1G --log-format json
  kerneld start --detach --socket ~/machine/kerneld.sock
"""
)
@click.option("--ram", type=Size(), default="1G", metavar="SIZE", help="The machine's RAM: 256M, 1G. [1G]")
@click.option(
    "--swap", type=Size(), default="0", metavar="SIZE", help="A swap file, gone when kerneld ends: 64M, 1G. [none]"
)
@click.option(
    "--overcommit-memory",
    type=click.IntRange(0, 2),
    default=0,
    show_default=True,
    help="vm.overcommit_memory: 0 guess, 1 always, 2 never.",
)
@click.option(
    "--overcommit-ratio",
    type=click.IntRange(0, 10_000),
    default=50,
    show_default=True,
    metavar="PERCENT",
    help="vm.overcommit_ratio: how much of RAM may be promised with --overcommit-memory 2.",
)
@click.option(
    "--max-map-count",
    type=click.IntRange(0, (1 << 31) - 1),
    default=65_530,
    show_default=True,
    help="vm.max_map_count: most mappings of a process.",
)
@click.option(
    "--mmap-min-addr",
    type=click.IntRange(0, 1 << 46),
    default=65_536,
    show_default=True,
    metavar="BYTES",
    help="vm.mmap_min_addr: the lowest address that a program may map.",
)
@socket_option
@click.option("--detach", is_flag=True, help="Run in the background; its log goes to a file beside the socket.")
@click.option("--log-format", type=click.Choice(["console", "json"]), default="console", show_default=True)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
@click.option(
    "--max-clients", type=click.IntRange(1, 65_536), default=1024, show_default=True, help="Most connections at once."
)
@click.option(
    "--max-threads", type=click.IntRange(1, 65_536), default=256, show_default=True, help="Most of them by one process."
)
@click.option(
    "--max-user-clients",
    type=click.IntRange(1, 65_536),
    default=256,
    show_default=True,
    help="Most of them by one user, root and yourself excepted.",
)
@click.option(
    "--host-targets/--no-host-targets",
    default=None,
    help="Let every caller open tables of real processes that it may ptrace, or none. [those that ask for it: "
    "inspector and programs of kerneld run]",
)
@click.option(
    "--host-interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="MILLISECONDS",
    help="Time between two looks at a real process that a table follows.",
)
@click.option(
    "--thp",
    type=click.Choice(["always", "madvise", "never"]),
    default="madvise",
    show_default=True,
    help="Huge pages: for all anonymous memory, for what MADV_HUGEPAGE names, or for none.",
)
@click.option(
    "--allow-group",
    metavar="GROUP",
    help="Let members of this group connect too, as users without privilege. [none but you and root]",
)
@click.option("--check-invariants", is_flag=True, hidden=True)
def start(
    ram: int,
    swap: int,
    overcommit_memory: int,
    overcommit_ratio: int,
    max_map_count: int,
    mmap_min_addr: int,
    socket_path: str | None,
    detach: bool,
    log_format: str,
    log_level: str,
    max_clients: int,
    max_threads: int,
    max_user_clients: int,
    host_targets: bool | None,
    host_interval: float,
    thp: str,
    allow_group: str | None,
    check_invariants: bool,
) -> None:
    """Serve, or have a child serve in the background."""
    path = os.path.abspath(socket_path or default_socket_path())
    gid = get_gid(allow_group) if allow_group is not None else None

    def serve(on_ready: Callable[[], None]) -> None:
        # One thread is all there is: spare the start the pool that numpy's algebra would make.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        # The arrays of frames are as sparse as the RAM that they describe: not in pages of 2 MiB.
        os.environ.setdefault("NUMPY_MADVISE_HUGEPAGE", "0")
        # structlog takes rich in wherever it is installed, for colours that the log does not use: half of the start.
        sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
        from kerneld.mm.limits import Sysctl, TransparentHugepage  # noqa: PLC0415
        from kerneld.server import daemon, logs  # noqa: PLC0415  (numpy, structlog)
        from kerneld.server.door import ClientLimits  # noqa: PLC0415
        from kerneld.server.socket_path import AlreadyRunning, SocketPathError  # noqa: PLC0415
        from kerneld.syscalls.kernel import HostTargets  # noqa: PLC0415

        allowed = {None: HostTargets.ASKED, True: HostTargets.ALWAYS, False: HostTargets.NEVER}[host_targets]
        logs.configure(logs.LogFormat(log_format), log_level)
        try:
            limits = ClientLimits(max_clients, max_threads, max_user_clients)
            sysctl = Sysctl(max_map_count, mmap_min_addr, overcommit_memory, overcommit_ratio, TransparentHugepage(thp))
            config = daemon.DaemonConfig(
                path, ram, limits, check_invariants, allowed, host_interval / 1000, swap, sysctl, gid
            )
            daemon.run(config, on_ready)
        except AlreadyRunning as error:
            raise Failure(Status.FAILED, str(error)) from None
        except (SocketPathError, daemon.MachineError) as error:
            raise Failure(Status.CANNOT_START, str(error)) from None
        except daemon.Panic as error:
            hint = f" (kerneld inspect-dump {error.dump})" if error.dump else ""
            raise Failure(Status.FAILED, f"kernel panic: {error}{hint}") from None

    if detach:
        start_in_background(path, gid, serve)
    else:
        serve(lambda: None)


def get_gid(group: str) -> int:
    """Return the gid of a group, by name or number. Raises a usage error where there is none."""
    from kerneld.server.socket_path import find_group  # noqa: PLC0415

    gid = find_group(group)
    if gid is None:
        raise click.BadParameter(f"there is no group '{group}'", param_hint="--allow-group")
    return gid


def start_in_background(path: str, gid: int | None, serve: Callable[[Callable[[], None]], None]) -> None:
    """Start a daemon that outlives this program, and say where it is once it accepts connections."""
    from kerneld.server import detach  # noqa: PLC0415
    from kerneld.server.socket_path import SocketPathError, log_name, open_log  # noqa: PLC0415

    def serve_in_child(on_ready: Callable[[], None], on_failure: Callable[[str], None]) -> int:
        try:
            serve(on_ready)
        except Failure as error:
            on_failure(error.message)
            return error.status
        return Status.OK

    log_path = os.path.join(os.path.dirname(path), log_name(path))
    try:
        log_fd = open_log(path, gid)
    except SocketPathError as error:
        raise Failure(Status.CANNOT_START, str(error)) from None
    started = detach.start_detached(log_fd, serve_in_child)
    os.close(log_fd)
    if not started.is_ready:
        raise Failure(Status(started.status), started.message.replace(detach.SEE_LOG, f"see {log_path}"))
    click.echo(f"kerneld runs: pid {started.pid}, socket {path}, log {log_path}")


@cli.command(
    short_help="End kerneld, and wait until it has ended.",
    help="""End the kerneld that listens on the socket, and wait until it has ended.

\b
Examples:
  kerneld stop
  kerneld stop --socket ~/machine/kerneld.sock
""",
)
@socket_option
@click.option(
    "--timeout", type=click.FloatRange(min=0), default=30.0, metavar="SECONDS", help="Longest time to wait. [30]"
)
def stop(socket_path: str | None, timeout: float) -> None:
    """Signal the daemon that answers on the socket."""
    from kerneld.server.peer import stop_daemon  # noqa: PLC0415

    pid = get_daemon(socket_path or default_socket_path())
    try:
        ended = stop_daemon(pid, timeout)
    except PermissionError:
        raise Failure(
            Status.NOT_PERMITTED, f"not permitted to stop kerneld (pid {pid}): it is another user's"
        ) from None
    if not ended:
        raise Failure(Status.FAILED, f"kerneld (pid {pid}) has not ended after {timeout:g} seconds")
    click.echo(f"kerneld has ended (pid {pid})")


@cli.command(
    help="""Say whether kerneld runs, and how it is doing. Exit status 0 when it runs, 3 when it does not.

\b
Examples:
  kerneld status
  kerneld status > /dev/null || kerneld start --detach
"""
)
@socket_option
def status(socket_path: str | None) -> None:
    """Print what kerneld says of itself."""
    path = socket_path or default_socket_path()
    pid = get_daemon(path)
    rows = [("Status", "running"), ("Pid", str(pid)), ("Socket", path)]
    for line in read_proc(path, "kerneld/status").decode("utf-8", "replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() != "pid":
            rows.append((key.strip(), value.strip()))
    width = max(len(key) for key, _ in rows) + 2
    for key, value in rows:
        click.echo(f"{key + ':':<{width}}{printable(value)}")


@cli.command(
    short_help="List the processes that kerneld serves.",
    help="""List the processes that kerneld serves (this command is one of them). VSZ and RSS are in KiB.

\b
Examples:
  kerneld ps
  kerneld ps --socket ~/machine/kerneld.sock
""",
)
@socket_option
def ps(socket_path: str | None) -> None:
    """Print a table as ps(1) does: numbers to the right, the command last."""
    tasks = read_proc(socket_path or default_socket_path(), "kerneld/tasks").decode("utf-8", "replace")
    rows = [PS_COLUMNS, *(tuple(line.split("\t", len(PS_COLUMNS) - 1)) for line in tasks.splitlines())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(PS_COLUMNS) - 1)]
    for row in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=False)]
        click.echo(" ".join([*cells, printable(row[-1])]))


@cli.command(
    help="""List what process PID has mapped, as Linux's /proc/PID/maps does.

\b
Examples:
  kerneld maps 4242
"""
)
@click.argument("pid", type=click.IntRange(min=1))
@socket_option
def maps(pid: int, socket_path: str | None) -> None:
    """Print the maps of a process."""
    emit(read_proc(socket_path or default_socket_path(), f"{pid}/maps", f"kerneld has no process {pid}"))


@cli.command(
    help="""Print a file of kerneld's /proc, as it is: PATH is under /proc.

\b
Examples:
  kerneld proc meminfo
  kerneld proc 4242/smaps
  kerneld proc 4242/pagemap | xxd
"""
)
@click.argument("path")
@socket_option
def proc(path: str, socket_path: str | None) -> None:
    """Print a /proc file."""
    name = path.removeprefix("/proc").strip("/")
    emit(read_proc(socket_path or default_socket_path(), name, f"kerneld's /proc has no file {name or '/'}"))


@cli.command(
    short_help="Run random memory programs on kerneld and on this host's kernel.",
    help="""Run random memory programs on kerneld and on this host's kernel, and compare after every call.

Needs a C compiler; no running kerneld. A divergence is shrunk, printed with both results side by side, and saved to a
file that --replay runs again. Exit status 1 where the two differ.

\b
Examples:
  kerneld referee --programs 1000
  kerneld referee --programs 100 --seed 7 --ops 60
  kerneld referee --replay referee-7-42.json
""",
)
@click.option("--programs", type=click.IntRange(min=1), default=1000, show_default=True, help="How many programs.")
@click.option("--seed", metavar="SEED", help="Makes the same programs again. [a fresh one]")
@click.option("--ops", type=click.IntRange(min=1), default=40, show_default=True, help="Calls of each program.")
@click.option("--replay", type=click.Path(dir_okay=False), metavar="FILE", help="Run the program of a file instead.")
def referee(programs: int, seed: str | None, ops: int, replay: str | None) -> None:
    """Let the host's kernel judge."""
    from kerneld.referee import run as runs  # noqa: PLC0415  (numpy, the whole kernel)
    from kerneld.referee.host import HostError  # noqa: PLC0415
    from kerneld.server import logs  # noqa: PLC0415

    logs.configure(logs.LogFormat.CONSOLE, "error")
    try:
        if replay is not None:
            if not runs.replay(Path(replay), click.echo):
                raise Failure(Status.FAILED, "kerneld and the host's kernel differ")
            click.echo("no divergence")
            return
        seed = seed or os.urandom(4).hex()
        click.echo(f"seed {seed}: {programs} programs of {ops} calls")
        result = runs.run(programs, seed, ops, Path.cwd(), click.echo)
    except HostError as error:
        raise Failure(Status.FAILED, str(error)) from None
    except ValueError as error:
        raise Failure(Status.FAILED, f"{replay}: {error}") from None
    if result.saved is not None:
        raise Failure(Status.FAILED, f"kerneld and the host's kernel differ; the program is in {result.saved.name}")
    click.echo(f"{result.programs} programs: no divergence")


def get_daemon(path: str) -> int:
    """Return the pid of the daemon at `path`. Raises Failure(NO_DAEMON) or Failure(NOT_PERMITTED)."""
    from kerneld.server.peer import find_daemon  # noqa: PLC0415

    try:
        pid = find_daemon(path)
    except PermissionError:
        raise Failure(Status.NOT_PERMITTED, f"not permitted to use the kerneld at {path}") from None
    if pid is None:
        raise Failure(Status.NO_DAEMON, f"kerneld does not run: nobody listens at {path}")
    return pid


def read_proc(path: str, name: str, if_missing: str = "this kerneld has no such file") -> bytes:
    """Return the whole of kerneld's /proc file `name`. Raises Failure with the status that fits."""
    from shared.client import Process  # noqa: PLC0415

    with as_failures(name, if_missing):
        process = Process.attach(path)
        try:
            return process.read_proc(name)
        finally:
            process.close()


@contextlib.contextmanager
def as_failures(name: str, if_missing: str) -> Iterator[None]:
    """Turn what the client library raises into the one line and the status that people get."""
    try:
        yield
    except KerneldUnavailable as error:
        # The library says why in words; the errno behind them tells a locked door from an empty house.
        is_locked = isinstance(error.__context__, PermissionError)
        raise Failure(Status.NOT_PERMITTED if is_locked else Status.NO_DAEMON, str(error)) from None
    except KerneldGone as error:
        raise Failure(Status.DAEMON_GONE, str(error)) from None
    except KerneldError as error:
        raise Failure(Status.FAILED, str(error)) from None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH):
            raise Failure(Status.NO_PROCESS, if_missing) from None
        if error.errno in (errno.EPERM, errno.EACCES):
            raise Failure(Status.NOT_PERMITTED, f"not permitted to read /proc/{name}") from None
        raise Failure(Status.FAILED, f"cannot read /proc/{name}: {error.strerror}") from None


def emit(content: bytes) -> None:
    """Write bytes to stdout as they are."""
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def printable(text: str) -> str:
    """Return `text` with what could steer a terminal replaced: a process chooses its own name."""
    return "".join(char if char.isprintable() else "?" for char in text)
