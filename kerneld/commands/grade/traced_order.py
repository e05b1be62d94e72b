"""The order in which the functions of the last question run: traced in a private kernel, never written down here.

Owns that kernel. The program of the question is `target --scenario null-write`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from kerneld.commands.grade.cell.isolation import die_with_parent
from shared.client import Process
from shared.client.errors import KerneldError, KerneldUnavailable
from shared.client.trace import TraceSession
from shared.private_directory import private_directory
from shared.trace.events import FUNCGRAPH_ENTRY
from shared.trace.graph_text import plain_name
from shared.trace.record import Record

FUNCTIONS = (
    "__schedule", "arch_do_signal_or_restart", "bad_area_nosemaphore", "context_switch", "deactivate_task",
    "dequeue_task", "do_exit", "do_group_exit", "do_user_addr_fault", "exc_page_fault", "exit_to_user_mode_loop",
    "exit_to_user_mode_prepare", "find_vma", "force_sig_fault", "force_sig_fault_to_task", "get_signal",
    "handle_page_fault", "irqentry_exit", "irqentry_exit_to_user_mode", "lock_mm_and_find_vma", "lock_vma_under_rcu",
    "send_signal_locked", "sigaddset",
)  # fmt: skip
"""Functions that the question may list, by the alphabet. A course writes its own list into the checklist."""
_ENTRY = "exc_page_fault"
_SECONDS = 120.0
_RING_BYTES = 4 << 20


class Order(NamedTuple):
    """The traced order."""

    functions: tuple[str, ...]
    why_not: str
    """Why it could not be traced."""


def trace_order(functions: Sequence[str]) -> Order:
    """Play the program of the question in a private kernel, and return which of the functions ran, in their order."""
    with private_directory("kerneld-grade-") as directory:
        socket = os.path.join(directory, "kerneld.sock")
        words = ("start", "--socket", socket, "--ram", "64M", "--log-level", "error")
        # It ends with this process, also when Ctrl+C ends that at once.
        daemon = subprocess.Popen(
            _command("kerneld", *words), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent, start_new_session=True,  # noqa: PLW1509  (no thread runs yet)
        )  # fmt: skip
        try:
            with _attach(socket, daemon) as process:
                return _trace(process, socket, set(functions))
        except (KerneldError, OSError) as error:
            return Order((), str(error))
        finally:
            daemon.terminate()
            daemon.wait(_SECONDS)


def _attach(socket: str, daemon: subprocess.Popen[bytes]) -> Process:
    """Attach to the private kernel when it is there. Raises KerneldError, OSError."""
    while True:
        try:
            return Process.attach(socket)
        except KerneldUnavailable:
            if daemon.poll() is not None:
                raise
            time.sleep(0.05)


def _trace(process: Process, socket: str, functions: set[str]) -> Order:
    trace = TraceSession(process, ("ftrace:*",), ring_bytes=_RING_BYTES, functions=("*",), graph_functions=(_ENTRY,))
    played = subprocess.run(
        _command("target", "--scenario", "null-write", "--delay", "0", "--socket", socket),
        capture_output=True, timeout=_SECONDS, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    names = [
        plain_name(entry.fields["func"])
        for entry in trace.reader.read()
        if isinstance(entry, Record) and entry.event is FUNCGRAPH_ENTRY
    ]
    lost = trace.reader.lost
    trace.close()
    order = tuple(name for name in names if name in functions)
    if lost or not order:
        return Order((), f"the program was played with status {played.returncode}, and {lost} events were lost")
    return Order(order, "")


def _command(program: str, *words: str) -> list[str]:
    return [sys.executable, "-P", "-m", program, *words]
