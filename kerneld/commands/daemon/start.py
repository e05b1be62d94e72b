"""`kerneld start`: the daemon, in the foreground or in the background.

Owns the options of the daemon and the words for people. numpy, structlog and the kernel are imported when the daemon
starts: `--help` does not wait for them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from kerneld.commands.failure import KerneldStatus
from kerneld.commands.options import Size
from kerneld.commands.processor import check_processor
from shared.client.path import default_socket_path
from shared.failure import Failure, Status
from shared.option_types import ByteCount, Seconds, Whole, socket_option

if TYPE_CHECKING:
    from kerneld.server.daemon import DaemonConfig


class MachineOptions(TypedDict):
    """The options of the machine and its clients: sizes in bytes, the interval in milliseconds."""

    ram: int
    swap: int
    overcommit_memory: int
    overcommit_ratio: int
    max_map_count: int
    mmap_min_addr: int
    log_format: str
    log_level: str
    max_clients: int
    max_threads: int
    max_user_clients: int
    max_files: int
    max_user_files: int
    allow_network_files: bool
    host_targets: bool | None
    host_interval: float
    thp: str
    trace_buffer: int
    no_pku: bool
    no_exec: bool
    bug: str | None
    check_invariants: bool


@click.command(
    short_help="Start kerneld.",
    help="""Start kerneld. SIGINT (Ctrl+C), SIGTERM or SIGHUP ends it; a SIGHUP that nohup ignores does not.

\b
Examples:
  kerneld start
  kerneld start --ram 256M --swap 1G --log-format json
  kerneld start --detach --socket ~/machine/kerneld.sock
  kerneld start --bug no-munmap-update
""",
)
@click.option("--ram", type=Size(), default="1G", metavar="SIZE", help="RAM of the machine: 256M, 1G. [1G]")
@click.option(
    "--swap",
    type=Size(),
    default="0",
    metavar="SIZE",
    help="Size of a swap file, removed when kerneld ends: 64M, 1G. [none]",
)
@click.option(
    "--overcommit-memory",
    type=Whole(0, 2),
    default=0,
    show_default=True,
    help="vm.overcommit_memory: 0 guess, 1 always, 2 never.",
)
@click.option(
    "--overcommit-ratio",
    type=Whole(0, 10_000),
    default=50,
    show_default=True,
    metavar="PERCENT",
    help="vm.overcommit_ratio: the part of RAM that --overcommit-memory 2 may promise.",
)
@click.option(
    "--max-map-count",
    type=Whole(0, (1 << 31) - 1),
    default=65_530,
    show_default=True,
    help="vm.max_map_count: the most mappings of a process.",
)
@click.option(
    "--mmap-min-addr",
    type=ByteCount(1 << 46),
    default=65_536,
    show_default=True,
    metavar="SIZE",
    help="vm.mmap_min_addr: the lowest address that a program may map: 65536, 64K or 0x10000.",
)
@socket_option
@click.option("--detach", is_flag=True, help="Run in the background. The log goes to a file beside the socket.")
@click.option("--log-format", type=click.Choice(["console", "json"]), default="console", show_default=True)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
@click.option(
    "--max-clients", type=Whole(1, 65_536), default=4096, show_default=True, help="The most connections at once."
)
@click.option(
    "--max-threads", type=Whole(1, 65_536), default=1024, show_default=True, help="The most connections of one process."
)
@click.option(
    "--max-user-clients",
    type=Whole(1, 65_536),
    default=256,
    show_default=True,
    help="The most connections of one user. Root and the user that runs kerneld have no such limit.",
)
@click.option(
    "--max-files",
    type=Whole(1, 1 << 20),
    default=1024,
    show_default=True,
    help="The most open files that one process has in use at once.",
)
@click.option(
    "--max-user-files",
    type=Whole(1, 1 << 20),
    default=4096,
    show_default=True,
    help="The most open files of one user, or an eighth of RLIMIT_NOFILE if that is less. Root and the user that runs "
    "kerneld have no such limit.",
)
@click.option(
    "--allow-network-files",
    is_flag=True,
    help="Map files of network file systems too (NFS, FUSE …). All clients wait while a server does not answer.",
)
@click.option(
    "--host-targets/--no-host-targets",
    default=None,
    help="Whether callers may open tables of the real processes that they may ptrace: all callers, or no caller. "
    "[callers that ask for it: the inspector and programs of kerneld run]",
)
@click.option(
    "--host-interval",
    type=Seconds(min=0.1),
    default=1.0,
    show_default=True,
    metavar="MILLISECONDS",
    help="Time between two looks at a real process with an open table.",
)
@click.option(
    "--thp",
    type=click.Choice(["always", "madvise", "never"]),
    default="madvise",
    show_default=True,
    help="Huge pages for all anonymous memory, for ranges with MADV_HUGEPAGE, or for no memory.",
)
@click.option(
    "--no-pku", is_flag=True, help="A processor without memory protection keys. Execute-only memory can then be read."
)
@click.option(
    "--no-exec",
    is_flag=True,
    help="Take no programs of kerneld exec in: nobody else's process can then map the RAM to write.",
)
@click.option(
    "--allow-group",
    metavar="GROUP",
    help="Members of this group may connect too, without privilege. [only root and the user that runs kerneld]",
)
@click.option(
    "--trace-buffer",
    type=Size(),
    default="256M",
    metavar="SIZE",
    help="The largest buffer of a trace. Users without privilege get a sixteenth. [256M]",
)
@click.option(
    "--bug",
    metavar="NAME",
    help="Plant a mistake that students make in the kernel part of the assignment. 'list' prints the names.",
)
@click.option("--explain", is_flag=True, help="With --bug list: what each mistake is, and which check finds it.")
@click.option("--check-invariants", is_flag=True, hidden=True)
def start(
    socket_path: str | None, detach: bool, allow_group: str | None, explain: bool, **options: Unpack[MachineOptions]
) -> None:
    """Serve, or have a child serve in the background."""
    if explain and options["bug"] != "list":
        raise click.UsageError("'--explain' needs '--bug list'.")
    if options["bug"] is not None:
        from kerneld.bugs.catalogue import BUGS  # noqa: PLC0415

        if options["bug"] == "list":
            list_bugs(is_explained=explain)
            return
        if options["bug"] not in BUGS:
            raise click.BadParameter(f"there is no mistake '{options['bug']}' (--bug list)", param_hint="--bug")
    check_processor()
    path = os.path.abspath(socket_path or default_socket_path())
    gid = get_gid(allow_group) if allow_group is not None else None
    if detach:
        start_in_background(path, gid, lambda on_ready: serve(path, gid, options, on_ready))
    else:
        serve(path, gid, options, lambda: None)


def serve(path: str, gid: int | None, options: MachineOptions, on_ready: Callable[[], None]) -> None:
    """Run the daemon until a signal ends it; call `on_ready` when the socket accepts connections. Raises Failure."""
    # The daemon has one thread. The pool of threads that numpy's algebra makes would only delay the start.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # The arrays of frames are as sparse as the RAM that they describe: not in pages of 2 MiB.
    os.environ.setdefault("NUMPY_MADVISE_HUGEPAGE", "0")
    # structlog takes rich in wherever it is installed, for colours that the log does not use: half of the start.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
    from kerneld.server import daemon, logs  # noqa: PLC0415  (numpy, structlog)
    from kerneld.server.socket_path import AlreadyRunning, SocketPathError  # noqa: PLC0415

    logs.configure(logs.LogFormat(options["log_format"]), options["log_level"])
    if options["bug"] is not None:
        from kerneld.bugs.plant_bug import plant_bug  # noqa: PLC0415

        plant_bug(options["bug"])
    try:
        daemon.run(get_config(path, gid, options), on_ready)
    except AlreadyRunning as error:
        raise Failure(Status.FAILED, str(error)) from None
    except (SocketPathError, daemon.MachineError) as error:
        raise Failure(KerneldStatus.CANNOT_START, str(error)) from None
    except daemon.Panic as error:
        hint = f" (kerneld inspect-dump {error.dump})" if error.dump else ""
        raise Failure(Status.FAILED, f"kernel panic: {error}{hint}") from None


def get_config(path: str, gid: int | None, options: MachineOptions) -> DaemonConfig:
    """Return the configuration that the options describe."""
    from kerneld.fs.file_limits import FileRules  # noqa: PLC0415
    from kerneld.mm.limits import Sysctl, TransparentHugepage  # noqa: PLC0415
    from kerneld.server.daemon import DaemonConfig  # noqa: PLC0415  (numpy, structlog)
    from kerneld.server.door import ClientLimits  # noqa: PLC0415
    from kerneld.syscalls.kernel import HostTargets  # noqa: PLC0415

    allowed = {None: HostTargets.ASKED, True: HostTargets.ALWAYS, False: HostTargets.NEVER}[options["host_targets"]]
    return DaemonConfig(
        path,
        options["ram"],
        ClientLimits(options["max_clients"], options["max_threads"], options["max_user_clients"]),
        options["check_invariants"],
        allowed,
        options["host_interval"] / 1000,
        options["swap"],
        Sysctl(
            max_map_count=options["max_map_count"],
            mmap_min_addr=options["mmap_min_addr"],
            overcommit_memory=options["overcommit_memory"],
            overcommit_ratio=options["overcommit_ratio"],
            transparent_hugepage=TransparentHugepage(options["thp"]),
        ),
        FileRules(options["max_files"], options["max_user_files"], options["allow_network_files"]),
        gid,
        options["trace_buffer"],
        not options["no_pku"],
        not options["no_exec"],
    )


def list_bugs(*, is_explained: bool) -> None:
    """Print the mistakes that --bug can plant: their names, or also what they are and which check finds them."""
    from kerneld.bugs.catalogue import BUGS  # noqa: PLC0415

    for name, bug in BUGS.items():
        click.echo(f"{name}\n    {bug.words}\n    found by: {', '.join(bug.checks)}" if is_explained else name)


def get_gid(group: str) -> int:
    """Return the gid of a group, by name or number. Raises a usage error for an unknown group."""
    from kerneld.server.socket_path import find_group  # noqa: PLC0415

    gid = find_group(group)
    if gid is None:
        raise click.BadParameter(f"there is no group '{group}'", param_hint="--allow-group")
    return gid


def start_in_background(path: str, gid: int | None, serve: Callable[[Callable[[], None]], None]) -> None:
    """Start a daemon that outlives this program. When it accepts connections, print its pid, socket and log."""
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
        raise Failure(KerneldStatus.CANNOT_START, str(error)) from None
    started = detach.start_detached(log_fd, serve_in_child)
    os.close(log_fd)
    if not started.is_ready:
        raise Failure(started.status, started.message.replace(detach.SEE_LOG, f"see {log_path}"))
    click.echo(f"kerneld runs: pid {started.pid}, socket {path}, log {log_path}")
