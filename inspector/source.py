"""Where the server's chunks come from: a running kerneld, read by a thread, or a file that is complete already."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from shared.client.errors import KerneldGone
from shared.recording.chunks import Chunk
from shared.recording.live import LiveRecord
from shared.recording.reader import Recording

GONE = "kerneld went away"
_BATCH_SECONDS = 0.012
"""After each read the thread pauses so long: what a busy kernel does meanwhile comes in one chunk."""
_PATIENCE_SECONDS = 0.5


class Source(Protocol):
    """What the server needs of a record."""

    head: dict[str, Any]

    def begin(self, take: Callable[[Iterable[Chunk]], None], end: Callable[[str], None]) -> None:
        """Begin to call `take` with chunks, and `end` with the reason when no more will come. From any thread."""

    def close(self) -> None:
        """Give everything back."""


class FileSource:
    """A record that is a file."""

    def __init__(self, recording: Recording) -> None:
        self.head = recording.head
        self._recording = recording

    def begin(self, take: Callable[[Iterable[Chunk]], None], end: Callable[[str], None]) -> None:
        """Hand out every chunk at once."""
        take(self._recording.chunks())
        end("the record is cut off here" if self._recording.is_cut else "the record ends here")

    def close(self) -> None:
        """Nothing is open."""


class LiveSource:
    """A running kerneld."""

    def __init__(self, live: LiveRecord) -> None:
        """Take the record; `close` closes it."""
        self.head = live.head
        self._live = live
        self._stop_fd, self._stopper = os.pipe2(os.O_CLOEXEC)
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    def begin(self, take: Callable[[Iterable[Chunk]], None], end: Callable[[str], None]) -> None:
        """Start the thread that reads."""

        def read() -> None:
            try:
                while not self._stopped.is_set():
                    chunks = self._live.read(_PATIENCE_SECONDS, self._stop_fd)
                    if chunks:
                        take(chunks)
                    if self._live.is_ended:
                        take(self._live.stop())
                        end(GONE)
                        return
                    self._stopped.wait(_BATCH_SECONDS)
            except (OSError, KerneldGone):
                end(GONE)

        self._thread = threading.Thread(target=read, name="record", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread and close the connection."""
        self._stopped.set()
        os.close(self._stopper)
        if self._thread is not None:
            self._thread.join()
        os.close(self._stop_fd)
        self._live.close()
