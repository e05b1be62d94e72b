"""The check of the processor, for commands that import numpy."""

from __future__ import annotations

from kerneld.commands.failure import KerneldStatus
from shared.failure import Failure
from shared.processor import why_too_old


def check_processor() -> None:
    """Raise Failure on a processor on which the import of numpy would end with a traceback or a signal."""
    why = why_too_old()
    if why:
        raise Failure(KerneldStatus.CANNOT_START, why)
