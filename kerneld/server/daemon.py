"""The life of the daemon: it claims the socket, builds the machine, serves, and removes everything at the end.

Owns the order of these steps. The socket is claimed before the machine is built, so a second daemon reports the
conflict at once. The socket is released last: when it is gone, everything else is gone too. A signal only writes a
byte into a pipe that the loop watches: a running request is always finished.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import structlog

import kerneld.trace.probes
from kerneld.errors import KernelBug
from kerneld.fs.file_limits import FileRules
from kerneld.mm.limits import Sysctl
from kerneld.server.collector import spare_collector
from kerneld.server.door import ClientLimits
from kerneld.server.host_watch import HOST_INTERVAL_SECONDS
from kerneld.server.logs import LIMITS
from kerneld.server.loop import Loop
from kerneld.server.panic import write_dump
from kerneld.server.socket_path import Claim, claim
from kerneld.shadowpt.segment import why_no_segment
from kerneld.syscalls.kernel import HostTargets, Kernel, KernelConfig
from shared.stop_signals import stop_signals

BYTES_PER_MIB = 1 << 20
TRACING_MODULES = (
    "shared.trace.events",
    *(f"kerneld.trace.{name}" for name in ("fprobe", "tracepoint", "ring", "trace", "ftrace", "probe")),
    *(f"kerneld.trace.probes.{name}" for name in kerneld.trace.probes.NAMES),
)
"""The modules that tracing imports, in an order in which no module imports many others."""

log = structlog.get_logger("kerneld.server")


class MachineError(Exception):
    """The machine cannot be built with these options: one line for people."""


class Panic(KernelBug):
    """The machine is broken. `dump` is the path of the dump; empty if the dump could not be written."""

    def __init__(self, why: str, dump: str) -> None:
        super().__init__(why)
        self.dump = dump


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """The options of `kerneld start`."""

    socket_path: str
    ram_bytes: int
    limits: ClientLimits
    check_invariants: bool = False
    host_targets: HostTargets = HostTargets.ASKED
    host_interval_seconds: float = HOST_INTERVAL_SECONDS
    swap_bytes: int = 0
    sysctl: Sysctl = field(default_factory=Sysctl)
    """The values of vm.* and of transparent huge pages at the start."""
    files: FileRules = field(default_factory=FileRules)
    """The limits on open files, and the kinds of files that may be used."""
    allow_group: int | None = None
    """The gid of a group whose members may connect too."""
    trace_buffer_bytes: int | None = None
    """The largest buffer of a trace in bytes; None: the default of `kerneld.trace`."""
    pku: bool = True
    """Whether the processor has memory protection keys."""
    native: bool = True
    """Whether native programs are allowed (`kerneld exec`)."""


def run(config: DaemonConfig, on_ready: Callable[[], None]) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP. `on_ready` is called when the socket accepts connections.

    Raises SocketPathError or MachineError when the daemon cannot start, and Panic when the machine is broken.
    """
    raise_fd_limit()
    # A second signal changes nothing: the end waits for the running request.
    with stop_signals(ends_at_second=False) as stop:
        held = claim(os.path.abspath(config.socket_path), config.allow_group)
        try:
            kernel = build_kernel(config)
            loop = Loop(kernel, held.listener, stop.fileno(), config.limits, config.host_interval_seconds)
            log.info("kerneld ready", socket=held.path, ram_mib=config.ram_bytes // BYTES_PER_MIB, pid=os.getpid())
            reason = why_no_segment()
            if reason:
                log.warning("no shadow page table can be opened for now", reason=reason)
            if kernel.file_changes_fd < 0:
                log.warning("no inotify instance is left: a file that is cut is looked at by the next fault alone")
            spare_collector()
            on_ready()
            try:
                loop.run()
                kernel.shutdown()
            except KernelBug as error:
                # A broken machine is not taken down in order: the process ends, and the host frees everything.
                log.critical("kernel panic", exc_info=True)
                raise Panic(str(error), _dump(kernel, error, held)) from error
        finally:
            held.release()
    missed = LIMITS.missed()
    log.info("kerneld stopped", **({"suppressed": missed} if missed else {}))


def _dump(kernel: Kernel, error: KernelBug, held: Claim) -> str:
    try:
        path = write_dump(kernel, error, held)
    except OSError as refused:
        log.error("the dump cannot be written", error=refused.strerror)
        return ""
    log.critical("the machine's state is kept", dump=path)
    return path


def build_kernel(config: DaemonConfig) -> Kernel:
    """Return the machine. Raises MachineError when the host has too little memory, or the size is not possible."""
    try:
        kernel = Kernel(
            KernelConfig(
                ram_bytes=config.ram_bytes,
                superuser_uid=os.getuid(),
                host_targets=config.host_targets,
                check_invariants=config.check_invariants,
                native=config.native,
                swap_bytes=config.swap_bytes,
                sysctl=config.sysctl,
                files=config.files,
                pku=config.pku,
            )
        )
    except (OSError, MemoryError, ValueError) as error:
        swap = f" and {config.swap_bytes // BYTES_PER_MIB} MiB of swap" if config.swap_bytes else ""
        why = (error.strerror if isinstance(error, OSError) else str(error)) or "out of memory"
        raise MachineError(f"cannot build a machine of {config.ram_bytes // BYTES_PER_MIB} MiB{swap}: {why}") from None
    kernel.load_tracing = functools.partial(_load_tracing, config.trace_buffer_bytes)
    return kernel


def raise_fd_limit() -> None:
    """Raise the limit of fds to its maximum: each client needs a connection, and each process a pidfd."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _load_tracing(max_ring_bytes: int | None, kernel: Kernel) -> Iterator[None]:
    """Load the tracing of a machine when the first trace is opened, so that the start does not wait for it.

    It yields after each module, so that other clients are served in between: the imports take as long as many requests.
    """
    for module in TRACING_MODULES:
        importlib.import_module(module)
        yield
    from kerneld.trace.tracing import MAX_RING_BYTES, Tracing  # noqa: PLC0415

    if kernel.tracing is None:
        Tracing(kernel, MAX_RING_BYTES if max_ring_bytes is None else max_ring_bytes)
