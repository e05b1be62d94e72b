"""The head of a record names what the kernel has, by the kernel's own names."""

from __future__ import annotations

from kerneld.mm import vm_flags
from shared.recording.head import VM_FLAGS, make_head
from shared.trace.event import HEADER_BYTES
from shared.trace.events import EVENTS, FTRACE


def test_the_flags_of_a_vma_are_the_kernels() -> None:
    assert {name: getattr(vm_flags, f"VM_{name}") for name in VM_FLAGS} == VM_FLAGS


def test_each_event_is_described_as_it_is_packed() -> None:
    """A record that is unpacked by the head alone has the fields of one that is unpacked by the event."""
    described = {one["number"]: one for one in make_head(pids=(), superuser=True)["events"]}
    assert described.keys() == {event.number for event in EVENTS} - FTRACE
    for event in EVENTS:
        if event.number in described:
            fields = described[event.number]["fields"]
            assert [field["name"] for field in fields] == [field.name for field in event.fields]
            assert not fields or fields[0]["offset"] == HEADER_BYTES
            assert described[event.number]["size"] == event.layout.size
