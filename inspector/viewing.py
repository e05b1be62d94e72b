"""The views of a record: in the browser (`--web`), of a running kerneld or of a file (`--replay`).

Joins the options with the views. A view whose package is not installed says so in one line.
"""

from __future__ import annotations

from typing import NamedTuple

from inspector.address import Span
from inspector.printing import emit
from shared.client.errors import KerneldGone
from shared.failure import Failure, Status, client_failures
from shared.recording.chunks import NoRecord
from shared.recording.live import LiveRecord
from shared.recording.reader import Recording
from shared.stop_signals import stop_signals


class Focus(NamedTuple):
    """What the view shows first: a process, and a range of it."""

    pid: int | None
    span: Span | None

    def as_words(self) -> dict[str, str]:
        """Return it as the part of an address behind the #."""
        words = {} if self.pid is None else {"pid": str(self.pid)}
        if self.span is not None:
            words |= {"start": f"{self.span.start:#x}", "end": f"{self.span.end:#x}"}
        return words


def open_recording(path: str) -> Recording:
    """Return the record of a file. Raises Failure."""
    try:
        return Recording.open(path)
    except NoRecord as error:
        raise Failure(Status.FAILED, f"{path}: {error}") from None
    except OSError as error:
        raise Failure(Status.FAILED, f"cannot read {path}: {error.strerror}") from None


def show_in_browser(focus: Focus, *, port: int, replay: str | None, socket_path: str | None) -> None:
    """Serve the page until a signal. Raises Failure."""
    try:
        from inspector.web.run import serve  # noqa: PLC0415
        from inspector.web.source import FileSource, LiveSource  # noqa: PLC0415
    except ImportError as error:
        raise Failure(
            Status.FAILED, f"the view in the browser needs {error.name}: pip install 'kerneld[web]' has it"
        ) from None
    source: FileSource | LiveSource
    with stop_signals() as signals:
        source = FileSource(open_recording(replay)) if replay is not None else LiveSource(open_live(socket_path))
        try:
            serve(source, signals, port, focus.as_words(), lambda address: emit([address]))
        finally:
            source.close()


def open_live(socket_path: str | None) -> LiveRecord:
    """Return a record of the running kerneld. Raises Failure."""
    try:
        with client_failures():
            return LiveRecord(socket_path)
    except (KerneldGone, OSError) as error:
        raise Failure(
            Status.FAILED, f"kerneld refuses the record: {getattr(error, 'strerror', None) or error}"
        ) from None
