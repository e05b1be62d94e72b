"""Each refusal of the shadow page table's calls says why: to its caller, in the log, and in the event of an open."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Callable, Iterator

import pytest
import structlog

from shared.trace.events import SHADOWPT_OPEN
from shared.uapi.page import PAGE_SIZE, TASK_SIZE
from shared.uapi.shadowpt import OPEN_HOST, USER_SHADOW_PT
from shared.uapi.syscalls import Nr
from tests.support.fake_shadowpt import HostMemory
from tests.support.programs import NOBODY_FROM, ROOT, USER, Program, page
from tests.support.traced import TracedWorld


class Scene:
    """An opener, which is this real process, a target, and memory for the table."""

    def __init__(self) -> None:
        self.world = TracedWorld()
        self.target = self.world.attach(USER)
        self.opener = self.world.attach(ROOT, pid=os.getpid())
        self.user = self.world.attach(USER)
        self.memory = HostMemory(12)
        self.done = threading.Event()

    def open(self, *, who: Program | None = None, data: bytes | None = None, **changes: int) -> int:
        values = {"pid": self.target.pid, "start": page(0), "end": page(8), "entries": self.memory.address} | changes
        packed = USER_SHADOW_PT.pack(values["start"], values["end"], values["entries"]) if data is None else data
        args = (values["pid"], 0, values.get("layout", 0), values.get("flags", 0))
        answer = (who or self.opener).answer(Nr.SHADOWPT_OPEN, *args, data=packed)
        for fd in answer.fds:
            os.close(fd)
        return answer.ret

    def opened(self) -> Scene:
        assert self.open() == 0
        return self

    def ended(self) -> Scene:
        self.target.call(Nr.EXIT_GROUP, 0)
        return self

    def touched(self) -> Scene:
        self.memory.touch(1)
        return self

    def thread(self) -> int:
        """Return the tid of a thread of this process that is not its main one."""
        tids: list[int] = []
        is_known = threading.Event()

        def live() -> None:
            tids.append(threading.get_native_id())
            is_known.set()
            self.done.wait()

        threading.Thread(target=live).start()
        is_known.wait()
        return tids[0]

    def explanation(self, who: Program | None = None) -> str:
        return (who or self.opener).answer(Nr.PROCREAD, 0, 4096, data=b"kerneld/explanation").data.decode()


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.done.set()
    scene.world.close()
    scene.memory.close()


Refused = Callable[[Scene], int]
OPENS: list[tuple[Refused, int, str]] = [
    (lambda s: s.open(who=s.user), errno.EPERM, r"only root .* not uid 1000"),
    (lambda s: s.open(data=bytes(23)), errno.EFAULT, r"24 bytes: 23 came"),
    (lambda s: s.open(layout=7), errno.EINVAL, r"no layout 7: 0, 23"),
    (lambda s: s.open(end=page(0)), errno.EINVAL, r"empty: its end 0x1000000000 is not after its start 0x1000000000"),
    (lambda s: s.open(start=page(0) + 1), errno.EINVAL, r"start 0x1000000001 is not page-aligned"),
    (lambda s: s.open(end=page(1) + 1), errno.EINVAL, r"end 0x1000001001 is not page-aligned"),
    (lambda s: s.open(end=1 << 60, start=1 << 59), errno.EINVAL, r"end 0x1000000000000000 is beyond the end of user"),
    (lambda s: s.open(pid=0), errno.EINVAL, r"there is no process 0"),
    (lambda s: s.open(pid=NOBODY_FROM - 1), errno.EINVAL, r"there is no process 8388607"),
    (lambda s: s.open(pid=-1 & 0xFFFF_FFFF), errno.EINVAL, r"there is no process -1,"),
    (lambda s: s.ended().open(), errno.EINVAL, r"there is no process"),
    (lambda s: s.open(pid=os.getppid()), errno.EINVAL, r"is none of kerneld's, and the caller does not ask for real"),
    (lambda s: s.open(pid=2), errno.EINVAL, r"process 2\b"),
    (lambda s: s.open(pid=s.thread(), flags=OPEN_HOST), errno.EINVAL, rf"a thread of process {os.getpid()}$"),
    (lambda s: s.opened().open(), errno.EBUSY, rf"process {os.getpid()} \(.*\) has a table open, of process"),
    (lambda s: s.open(entries=1), errno.EINVAL, r"entries 0x1, 4096 bytes for the table: not page-aligned"),
    (
        lambda s: s.open(end=page(400), entries=s.memory.address + 11 * PAGE_SIZE),
        errno.EINVAL,
        r"the mapping ends 4096 bytes",
    ),
    (lambda s: s.open(entries=1 << 46), errno.EINVAL, r"nothing is mapped there"),
    (lambda s: s.touched().open(end=page(400)), errno.EINVAL, r"1 pages have been touched, the first at 0x"),
]
OTHERS: list[tuple[Nr, Refused, int, str]] = [
    *(
        (nr, lambda s, nr=nr: s.opener.call(nr), errno.EINVAL, r"no table is open")
        for nr in (Nr.SHADOWPT_CLOSE, Nr.SHADOWPT_START, Nr.SHADOWPT_STOP, Nr.SHADOWPT_PAGE_CONTENTS)
    ),
    (Nr.SHADOWPT_PAGE_CONTENTS, lambda s: s.opened().opener.call(466, 7), errno.EINVAL, r"maps no frame 0x7 in 0x1"),
    (Nr.SHADOWPT_PAGE_CONTENTS, lambda s: s.opened().opener.call(466, 0), errno.EINVAL, r"maps no frame 0x0 in 0x1"),
]


@pytest.mark.parametrize(("refused", "code", "why"), OPENS, ids=[str(nr) for nr in range(len(OPENS))])
def test_an_open_that_is_refused_says_why(scene: Scene, refused: Refused, code: int, why: str) -> None:
    scene.explanation()
    with scene.world.trace("shadowpt:open") as trace, structlog.testing.capture_logs() as logs:
        assert refused(scene) == -code
        told = [record for record in trace.records(SHADOWPT_OPEN) if record.fields["ret"]]
    (entry,) = [entry for entry in logs if entry["event"] == "shadowpt_open refused"]
    who = scene.user if code == errno.EPERM else scene.opener
    said = scene.explanation(who)
    assert re.search(why, said), said
    assert "None" not in said
    assert entry["why"] == said
    assert (entry["error"], entry["log_level"]) == (errno.errorcode[code], "debug" if who is scene.user else "warning")
    (record,) = told
    assert (record.fields["ret"], record.fields["opener"]) == (-code, who.pid)
    assert said.startswith(record.fields["why"])
    assert record.fields["why"]


@pytest.mark.parametrize(("nr", "refused", "code", "why"), OTHERS)
def test_the_other_calls_say_why(scene: Scene, nr: Nr, refused: Refused, code: int, why: str) -> None:
    assert refused(scene) == -code
    assert re.search(why, scene.explanation())


@pytest.mark.parametrize("nr", [Nr.SHADOWPT_CLOSE, Nr.SHADOWPT_START, Nr.SHADOWPT_STOP])
def test_who_opened_it_is_named_to_others(scene: Scene, nr: Nr) -> None:
    other = scene.opened().world.attach(ROOT)
    assert other.call(nr) == -errno.EPERM
    assert f"only who opened the table may: process {os.getpid()} (" in scene.explanation(other)


@pytest.mark.parametrize("name", [b"\x1b[31mred", b"\xffx\x9b", b"line\nline", "\u202eback".encode()])
def test_the_name_of_a_process_does_not_reach_the_readers_terminal_as_it_is(scene: Scene, name: bytes) -> None:
    """Each user names their processes, with any bytes, and a program prints what kerneld explains."""
    other = scene.opened().world.attach(ROOT)
    scene.opener.process.comm = os.fsdecode(name)
    with structlog.testing.capture_logs() as logs:
        assert scene.open(who=other) == -errno.EBUSY
    said = scene.explanation(other)
    assert said.startswith(f"process {os.getpid()} (")
    assert said.isprintable()
    assert [entry["why"] for entry in logs] == [said]


def test_an_explanation_is_its_own_callers_and_goes_with_the_next_open(scene: Scene) -> None:
    assert scene.open(start=1) == -errno.EINVAL
    assert scene.explanation()
    assert scene.explanation(scene.user) == ""
    scene.opened()
    assert scene.explanation() == ""


def test_every_refusal_has_its_words(scene: Scene) -> None:
    """Whatever range, target and memory: an errno without a word is a check that somebody has forgotten."""
    for start in (0, 1, page(0), TASK_SIZE, (1 << 64) - PAGE_SIZE):
        for end in (0, 1, page(1), page(1) + 1, TASK_SIZE, (1 << 64) - 1):
            for pid in (scene.target.pid, 1, 1 << 31):
                scene.opener.process.explanation = ""
                if scene.open(start=start, end=end, pid=pid) < 0:
                    assert scene.explanation()
                else:
                    scene.opener.call(Nr.SHADOWPT_CLOSE)
