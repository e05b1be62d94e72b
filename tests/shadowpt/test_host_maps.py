"""Mappings of a real process in a window, by PROCMAP_QUERY and by reading the file."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from kerneld.shadowpt import host_maps
from kerneld.shadowpt.host_maps import HostMapping, has_query, mappings_in, parse_mapping
from tests.support.fake_shadowpt import HostMemory

PAGE = 4096


def every_mapping() -> list[HostMapping]:
    return [parse_mapping(line) for line in Path("/proc/self/maps").read_bytes().split(b"\n")[:-1]]


def found(start: int, end: int) -> list[HostMapping]:
    with open("/proc/self/maps", "rb", buffering=0) as maps:
        return mappings_in(maps.fileno(), start, end)


@pytest.fixture(params=["query", "file"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways, where the host has both."""
    if request.param == "query" and not has_query():
        pytest.skip("this host's kernel has no PROCMAP_QUERY: it came with Linux 6.11")
    if request.param == "file":
        monkeypatch.setattr(host_maps, "has_query", lambda: False)
    way: str = request.param
    return way


def test_windows_of_every_kind(way: str) -> None:
    mappings = every_mapping()
    stack = next(mapping for mapping in mappings if mapping.name == b"[stack]")
    program = mappings[0]
    for start, end, expected in [
        (0, program.start, []),
        (0, program.start + PAGE, [program]),
        (program.end - PAGE, program.end, [program]),
        (program.start, mappings[2].end, mappings[:3]),
        (stack.end - PAGE, stack.end + PAGE, [stack]),
        (stack.end, stack.end + PAGE, [mapping for mapping in mappings if mapping.start == stack.end]),
    ]:
        # Python's own memory may have grown meanwhile: ends and names of these do not change.
        assert [(one.start, one.perms, one.dev, one.inode, one.name) for one in found(start, end)] == [
            (one.start, one.perms, one.dev, one.inode, one.name) for one in expected
        ], (way, hex(start))


def test_private_anonymous_memory_is_known_as_such(way: str, tmp_path: Path) -> None:
    memory = HostMemory(1)
    (mapping,) = found(memory.address, memory.address + PAGE)
    assert mapping.is_private_anonymous, way
    memory.close()
    path = tmp_path / "with a space\n"
    path.write_bytes(bytes(PAGE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), PAGE) as _mapped:
        (mapping,) = [one for one in every_mapping() if one.inode == os.fstat(file.fileno()).st_ino]
        assert found(mapping.start, mapping.end) == [mapping]
        assert not mapping.is_private_anonymous


def test_of_many_mappings_those_in_the_window_alone_are_looked_at(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process with 20,000 of them took half a second, fifty times a second."""
    looked_at = 0
    parse, query = parse_mapping, host_maps._query_one

    def counting(*args: object) -> object:
        nonlocal looked_at
        looked_at += 1
        return parse(*args) if way == "file" else query(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(host_maps, "parse_mapping", counting)
    monkeypatch.setattr(host_maps, "_query_one", counting)
    stack = next(mapping for mapping in every_mapping() if mapping.name == b"[stack]")
    assert len(every_mapping()) > 30
    looked_at = 0
    assert found(stack.end - PAGE, stack.end)
    assert looked_at <= 3
