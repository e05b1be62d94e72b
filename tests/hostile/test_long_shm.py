"""shmat and shmdt of much memory: others are served meanwhile; and an attach over the last one of a removed segment."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kerneld.syscalls.kernel import Kernel
from shared.uapi.page import PAGE_SIZE
from shared.uapi.shm import IPC_RMID, SHM_NORESERVE, SHM_REMAP
from shared.uapi.syscalls import Access, Nr
from tests.support.in_process import Client
from tests.support.long_requests import GIB, attached, begun, call, finish, kernel_in_pieces

BYTES = 4 * GIB
STEP = 8 << 20


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    yield from kernel_in_pieces(monkeypatch)


def touch_some(client: Client, at: int) -> None:
    for start in range(at, at + BYTES, STEP):
        assert call(client, Nr.TOUCH, start, PAGE_SIZE, Access.WRITE).ret == 1


def test_others_are_served_while_a_large_attach_goes(kernel: Kernel) -> None:
    client, other = attached(kernel, 1), attached(kernel, 2)
    segment = call(client, Nr.SHMGET, 0, BYTES, SHM_NORESERVE | 0o600).ret
    at = call(client, Nr.SHMAT, segment, 0, 0).ret
    touch_some(client, at)
    (over,), served = finish(begun(client, Nr.SHMAT, segment, at, SHM_REMAP), other)
    assert over.ret == at
    assert served > 2
    touch_some(client, at)
    (gone,), served = finish(begun(client, Nr.SHMDT, at), other)
    assert gone.ret == 0
    assert served > 2
    assert call(client, Nr.SHMCTL, segment, IPC_RMID).ret == 0


def test_an_attach_over_the_last_one_of_a_removed_segment_keeps_its_memory(kernel: Kernel) -> None:
    client = attached(kernel, 1)
    segment = call(client, Nr.SHMGET, 0, PAGE_SIZE, 0o600).ret
    at = call(client, Nr.SHMAT, segment, 0, 0).ret
    call(client, Nr.STORE, at, 4, data=b"kept")
    assert call(client, Nr.SHMCTL, segment, IPC_RMID).ret == 0
    assert call(client, Nr.SHMAT, segment, at, SHM_REMAP).ret == at
    assert call(client, Nr.LOAD, at, 4).data == b"kept"
    assert call(client, Nr.SHMDT, at).ret == 0


def test_others_are_served_while_all_segments_are_listed(kernel: Kernel) -> None:
    """And one that goes between two reads is left out; no line is cut."""
    client, other = attached(kernel, 1), attached(kernel, 2)
    numbers = [call(client, Nr.SHMGET, 0, PAGE_SIZE, 0o600).ret for _ in range(300)]
    (half,), served = finish(begun(client, Nr.PROCREAD, 0, 40_000, data=b"sysvipc/shm"), other)
    assert served > 1
    assert call(client, Nr.SHMCTL, numbers[250], IPC_RMID).ret == 0
    (rest,), _ = finish(begun(client, Nr.PROCREAD, 40_000, 60_000, data=b"sysvipc/shm"), other)
    listed = [int(line.split()[1]) for line in (half.data + rest.data).splitlines()[1:]]
    assert listed == numbers[:250] + numbers[251:]
