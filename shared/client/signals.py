"""Signals of the simulated machine: runs the process's handlers, and ends the real process after a fatal signal.

Owns the book of dispositions that the library has set. Invariant: a signo is in `_running` only while its handler
runs. The same signal is then fatal, as Linux's force_sig does for a blocked signal. Answers to Linux v6.8
kernel/signal.c.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, TypeAlias

from shared.client import libc
from shared.client.errors import KerneldError
from shared.standard_streams import complain
from shared.uapi.signals import BusCode, Disposition, SegvCode
from shared.wire import Reply, SigInfo

_CODES: dict[int, type[SegvCode] | type[BusCode]] = {signal.SIGSEGV: SegvCode, signal.SIGBUS: BusCode}
_OURS = os.path.dirname(__file__) + os.sep
"""The directory of the library. Its frames are skipped when the library reports a line of the program."""
Handler: TypeAlias = Callable[[int, SigInfo], object]
"""A signal handler. It may raise, as a C handler may siglongjmp. When it returns, the access is tried again."""
Action: TypeAlias = signal.Handlers | Handler


class SignalActions:
    """The actions of this process for the signals that kerneld raises."""

    def __init__(self) -> None:
        self._actions: dict[int, Action] = {}
        self._running: set[int] = set()
        self.says_where = True
        """Whether a fatal signal is reported on stderr, with its address and the line of the program."""

    def get(self, signo: int) -> Action:
        """Return the action of `signo`: SIG_DFL, SIG_IGN or a handler."""
        return self._actions.get(signo, signal.SIG_DFL)

    def set(self, signo: int, action: Action) -> None:
        """Remember the action of `signo`."""
        self._actions[signo] = action

    def reset_caught(self) -> None:
        """Forget the handlers.

        Ignored signals stay ignored. Source: Linux v6.8 kernel/signal.c:flush_signal_handlers().
        """
        self._actions = {no: action for no, action in self._actions.items() if action == signal.SIG_IGN}

    def deliver(self, reply: Reply) -> None:
        """Act on the signal in `reply`: end the real process if the signal is fatal, else run the handler.

        Raises the exception of the handler, and KerneldError for a caught signal without a handler.
        """
        signo, info = reply.signo, reply.siginfo
        if info is None or info.fatal or signo in self._running:
            if self.says_where:
                complain(last_words(signo, info))
            die_of(signo)
        action = self.get(signo)
        if isinstance(action, signal.Handlers):
            raise KerneldError(f"kerneld raised signal {signo}, which nothing here catches")
        self._running.add(signo)
        try:
            action(signo, info)
        finally:
            self._running.discard(signo)


def last_words(signo: int, info: SigInfo | None) -> str:
    """Return the last line of a dying process: the signal, the address, and the line of the program.

    For a C program a debugger shows this; a simulated access is in no core file.
    """
    parts = [f"process {os.getpid()}: {signal.Signals(signo).name}"]
    if info is not None and signo in _CODES:
        name = next((code.name for code in _CODES[signo] if code == info.si_code), f"si_code {info.si_code}")
        parts.append(f"at {info.si_addr:#x} ({name})")
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    if frame is not None:
        parts.append(f"in {frame.f_code.co_filename}:{frame.f_lineno}, {frame.f_code.co_qualname}")
    return "kerneld: " + " ".join(parts)


def disposition_of(action: Action) -> Disposition:
    """Return the argument of rt_sigaction for `action`. Raises TypeError when it is no action."""
    if action == signal.SIG_DFL:
        return Disposition.DEFAULT
    if action == signal.SIG_IGN:
        return Disposition.IGNORE
    if callable(action):
        return Disposition.CAUGHT
    raise TypeError("an action is SIG_DFL, SIG_IGN or a callable")


def die_of(signo: int) -> NoReturn:
    """End the real process by the real signal, so that its parent sees the true status.

    Buffered output is written first. There is no core file: it would show Python, not the simulated program.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    _soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    libc.reset_signal(signo)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signo})
    signal.raise_signal(signo)
    # Only the first process of a pid namespace gets here: the real kernel drops signals that would end it.
    os._exit(128 + signo)
