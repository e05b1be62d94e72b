"""Who may open the shadow table sees its changes; nobody else does, but of his own memory, and there no frame."""

from __future__ import annotations

import os

from shared.trace.events import SPTE_UPDATE
from shared.uapi.shadowpt import USER_SHADOW_PT
from shared.uapi.syscalls import Nr
from tests.support.fake_shadowpt import HostMemory
from tests.support.programs import OTHER, ROOT, USER, page
from tests.support.traced import TracedWorld


def test_changes_of_a_table_are_for_who_may_open_it() -> None:
    world = TracedWorld()
    target = world.attach(USER)
    target.mmap(8, at=page(0))
    opener = world.attach(ROOT, pid=os.getpid())
    memory = HostMemory(12)
    packed = USER_SHADOW_PT.pack(page(0), page(8), memory.address)
    fds = opener.answer(Nr.SHADOWPT_OPEN, target.pid, 0, 0, data=packed).fds
    opener.call(Nr.SHADOWPT_START)
    with (
        world.trace("shadowpt:*") as superuser,
        world.trace("shadowpt:*", opener=world.attach(USER)) as owner,
        world.trace("shadowpt:*", opener=world.attach(OTHER)) as stranger,
    ):
        target.store(page(3), b"x")
        (seen,) = superuser.records(SPTE_UPDATE)
        assert seen.fields["new_pfn"] > 1
        (own,) = owner.records(SPTE_UPDATE)
        assert own.fields == seen.fields | {"new_pfn": 0}
        assert stranger.records() == []
    opener.call(Nr.SHADOWPT_CLOSE)
    for fd in fds:
        os.close(fd)
    world.close()
