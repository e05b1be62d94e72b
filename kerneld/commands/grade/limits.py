"""What a submission may use: time, memory, processes, output. A course edits the numbers in its checklist."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one submission."""

    build_seconds: int = 60
    """Of make."""
    target_seconds: int = 30
    """How long the submission's target is watched."""
    all_seconds: int = 180
    """Of everything together. The programs' own pauses count: this is the clock on the wall."""
    memory_mib: int = 1024
    """Of all its processes and files together."""
    processes: int = 64
    """Processes and threads at once, kerneld's own included."""
    output_mib: int = 8
    """What one program may print."""
    file_mib: int = 64
    """The size of a file that a program writes."""
