"""How the daemon's log looks: structlog on stderr, for people or as one JSON object a line."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from enum import StrEnum
from typing import TextIO, cast

import structlog

from shared.standard_streams import are_colours_welcome

STDERR_FD = 2


class LogFormat(StrEnum):
    """The value of --log-format."""

    CONSOLE = "console"
    JSON = "json"


class _Stderr:
    """Writes to fd 2, and goes on without it: `kerneld 2>&1 | head` must not take the machine down."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            os.write(STDERR_FD, text.encode("utf-8", "replace"))
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""


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
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        renderer,
    ]
    if log_format is LogFormat.JSON:
        processors.insert(-1, structlog.processors.format_exc_info)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level_name.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Stderr())),
        cache_logger_on_first_use=True,
    )
