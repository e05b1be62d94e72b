"""A recorded world: the chunks of a record of a whole kernel in the test's process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shared.recording.chunks import Chunk, pack_head
from shared.recording.head import GLOBS, make_head
from shared.recording.machine import Machine
from shared.recording.reader import Recording
from shared.recording.recorder import KEY_EVENTS, Recorder
from tests.support.traced import Trace, TracedWorld


def state(machine: Machine) -> dict[str, Any]:
    """Return everything that a machine of the model has, to be compared."""
    mms = {
        number: (
            mm.pid, mm.vmas, mm.tables, sorted(mm.deposited), list(mm.runs()), mm.start_brk, mm.brk,
            mm.start_stack, mm.rss,
        )
        for number, mm in machine.mms.items()
    }  # fmt: skip
    return {
        "mms": mms, "tasks": machine.tasks, "files": machine.files, "frames": bytes(machine.frames),
        "flags": machine.frame_flags.tolist(), "cached": machine.cached, "shmem": machine.shmem_slots,
        "swap": machine.swap_cache, "shadow": machine.shadow, "sizes": (machine.nr_frames, machine.nr_slots),
        "whole": machine.is_whole,
    }  # fmt: skip


class Recorded:
    """A record that grows while a test acts."""

    def __init__(self, world: TracedWorld, trace: Trace, key_events: int) -> None:
        self.world = world
        self.trace = trace
        self.recorder = Recorder(key_events)
        self.chunks: list[Chunk] = []

    def read(self) -> Machine:
        """Take what has happened; return the model."""
        self.world.tracing.flush()
        self.chunks += self.recorder.take(self.trace.reader.take())
        assert not self.trace.reader.lost
        return self.recorder.machine

    def file(self) -> bytes:
        """Return the record so far as a file."""
        self.read()
        return pack_head(make_head(pids=(), superuser=True)) + b"".join(chunk.pack() for chunk in self.chunks)

    def recording(self) -> Recording:
        """Return the record so far, read from its bytes."""
        return Recording(self.file())


@contextmanager
def recorded(
    world: TracedWorld, *, key_events: int = KEY_EVENTS, data_pages: int = 8192, **how: Any
) -> Iterator[Recorded]:
    """Record a world while a with block runs."""
    with world.trace(*GLOBS, data_pages=data_pages, **how) as trace:
        yield Recorded(world, trace, key_events)
