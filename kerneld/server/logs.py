"""The daemon's log: structlog on stderr, for people or as one JSON object for each line.

Clients choose the names in the log. Names are made safe for a terminal; JSON escapes them anyway.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import sys
import time
from datetime import datetime
from enum import StrEnum
from typing import TextIO, cast

import structlog

from kerneld.ratelimit import RateLimit
from shared.clock import seconds_text
from shared.standard_streams import are_colours_welcome
from shared.terminal import escaped

STDERR_FD = 2
WHOLE = "whole"
"""Set on the lines of a message of many lines. The code that makes such a message limits it as a whole."""


class LogFormat(StrEnum):
    """The value of --log-format."""

    CONSOLE = "console"
    JSON = "json"


class Output:
    """Writes lines to a descriptor, and never fails or waits.

    `kerneld 2>&1 | head` must not end the machine, and a full pipe that nobody reads must not stop it. Lines that find
    no room are lost; the next line comes after one that counts them.
    """

    def __init__(self, fd: int, log_format: LogFormat) -> None:
        self._fd = fd
        self._format = log_format
        self._room = select.poll()
        self._room.register(fd, select.POLLOUT)
        self._lost = 0

    def write(self, text: str) -> int:
        """Write a line, if there is room for it. Returns the length of the text."""
        if self._put(self._notice() + text if self._lost else text):
            self._lost = 0
        else:
            self._lost += 1
        return len(text)

    def _put(self, text: str) -> bool:
        """Return False if there was no room for all of it; a line that is too long for the room is cut."""
        data = text.encode("utf-8", "replace")
        for at in range(0, len(data), select.PIPE_BUF):
            if not self._room.poll(0):
                return False
            with contextlib.suppress(OSError):
                # A pipe that is ready takes PIPE_BUF bytes at once (pipe(7)).
                os.write(self._fd, data[at : at + select.PIPE_BUF])
        return True

    def _notice(self) -> str:
        words = "lines of the log are lost: nobody has read it"
        is_json = self._format is LogFormat.JSON
        return json.dumps({"event": words, "count": self._lost}) + "\n" if is_json else f"{self._lost} {words}\n"

    def flush(self) -> None:
        """Do nothing: there is no buffer."""


class Limits:
    """The processor that drops lines over the limit of their kind.

    `suppressed` in a line counts the dropped lines before.
    """

    def __init__(self) -> None:
        self._by_place: dict[tuple[str, int], RateLimit] = {}

    def __call__(
        self, _logger: structlog.typing.WrappedLogger, method: str, event_dict: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        """Return the line, or raise structlog.DropEvent. Debug lines and panics have no limit."""
        if event_dict.pop(WHOLE, False) or method in ("debug", "critical"):
            return event_dict
        limit = self._by_place.setdefault(_place_that_logs(), RateLimit())
        if not limit.allows():
            raise structlog.DropEvent
        missed = limit.take_missed()
        return {**event_dict, "suppressed": missed} if missed else event_dict

    def missed(self) -> int:
        """Return the number of dropped lines that no line has reported yet."""
        return sum(limit.missed for limit in self._by_place.values())


LIMITS = Limits()


def _place_that_logs() -> tuple[str, int]:
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "structlog":
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def _for_terminals(
    _logger: structlog.typing.WrappedLogger, _method: str, event_dict: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    return {key: escaped(value) if isinstance(value, str) else value for key, value in event_dict.items()}


def _stamp(_logger: object, _method: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Add both clocks to a line: the local time, as in the inspector, and the seconds, as in a trace."""
    entry["timestamp"] = datetime.now().astimezone().isoformat(timespec="microseconds")
    entry["monotonic"] = seconds_text(time.monotonic_ns())
    return entry


def configure(log_format: LogFormat, level_name: str) -> None:
    """Send the log to stderr from `level_name` (debug, info, warning, error) up."""
    renderer: structlog.typing.Processor
    if log_format is LogFormat.JSON:
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty() and are_colours_welcome(),
            exception_formatter=structlog.dev.plain_traceback,
            pad_event_to=0,
        )
    processors: list[structlog.typing.Processor] = [
        LIMITS,
        structlog.processors.add_log_level,
        _stamp,
        renderer,
    ]
    if log_format is LogFormat.JSON:
        processors.insert(-1, structlog.processors.format_exc_info)
    else:
        processors.insert(-1, _for_terminals)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level_name.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, Output(STDERR_FD, log_format))),
        cache_logger_on_first_use=True,
    )
