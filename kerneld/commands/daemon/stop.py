"""`kerneld stop`: sends the daemon a signal and waits for its end. Imports no kernel."""

from __future__ import annotations

import os
import select
import signal

import click

from shared.client.connection import find_daemon
from shared.client.path import default_socket_path
from shared.failure import Failure, Status, client_failures
from shared.option_types import Seconds, socket_option


@click.command(
    short_help="End kerneld, and wait for its end.",
    help="""End the kerneld that listens on the socket, and wait for its end.

\b
Examples:
  kerneld stop
  kerneld stop --socket ~/machine/kerneld.sock
""",
)
@socket_option
@click.option("--timeout", type=Seconds(min=0), default=30.0, metavar="SECONDS", help="The longest time to wait. [30]")
def stop(socket_path: str | None, timeout: float) -> None:
    """Send SIGTERM to the daemon on the socket."""
    with client_failures():
        pid = find_daemon(socket_path or default_socket_path())
    try:
        ended = stop_daemon(pid, timeout)
    except PermissionError:
        raise Failure(
            Status.NOT_PERMITTED, f"not permitted to stop kerneld (pid {pid}): it is another user's"
        ) from None
    if not ended:
        raise Failure(Status.FAILED, f"kerneld (pid {pid}) has not ended after {timeout:g} seconds")
    click.echo(f"kerneld has ended (pid {pid})")


def stop_daemon(pid: int, timeout_seconds: float) -> bool:
    """Send SIGTERM to process `pid` and wait for its end. Return whether it has ended in that time.

    Raises PermissionError for a process of another user.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(timeout_seconds * 1000))
    except ProcessLookupError:
        return True
    finally:
        os.close(pidfd)
