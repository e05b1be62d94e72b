"""Programs that ask much of a memory manager, each run inside and outside: the same output, the same status."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.native.inside import Inside


def test_vector_and_tile_registers_are_kept(inside: Inside, programs: dict[str, Path]) -> None:
    assert "lost" not in inside.agrees([str(programs["xstate"])]).output


def test_the_clock_needs_no_system_call(inside: Inside, programs: dict[str, Path]) -> None:
    assert "to nowhere: SIGSEGV" in inside.agrees([str(programs["clock"])]).output


def test_addresses_are_not_randomised(inside: Inside) -> None:
    """The same rule as for kerneld's other programs."""
    words = ["sh", "-c", "cat /proc/sys/kernel/randomize_va_space /proc/self/maps"]
    first, second = inside.run(words).output, inside.run(words).output
    assert first.startswith("0\n")
    assert [line.split()[0] for line in first.splitlines()] == [line.split()[0] for line in second.splitlines()]


def test_recursion_to_the_limit_of_the_stack(inside: Inside, programs: dict[str, Path]) -> None:
    end = inside.agrees([str(programs["deep"])])
    assert end.status == -signal.SIGSEGV
    assert end.output.count(": to the limit, on the other stack now: 0") == 3


def test_a_file_is_written_by_its_mapping_and_by_calls_at_once(
    inside: Inside, programs: dict[str, Path], tmp_path: Path
) -> None:
    assert (
        "at once: 0 wrong in memory, 0 by read" in inside.agrees([str(programs["writers"])], directory=tmp_path).output
    )


def test_each_call_that_writes_to_a_mapped_file(inside: Inside, programs: dict[str, Path], tmp_path: Path) -> None:
    assert inside.agrees([str(programs["file_calls"])], directory=tmp_path).output.count("error 0") == 19


def test_64_threads_fault_and_unmap_at_once(inside: Inside, programs: dict[str, Path]) -> None:
    assert inside.agrees([str(programs["threads"]), "64"]).status == 0


@pytest.mark.parametrize("most_files", [64, 4096])
def test_threads_make_threads_at_the_same_time(inside: Inside, programs: dict[str, Path], most_files: int) -> None:
    """All the descriptors that the program may have are taken: those of the stub are no matter of its."""
    words = ["sh", "-c", f"ulimit -n {most_files}; exec {programs['makers']} 8 100"]
    assert inside.agrees(words).output == "800 threads made, no error\n"


def test_a_server_of_500_children(inside: Inside, programs: dict[str, Path]) -> None:
    assert inside.agrees([str(programs["server"])]).output.startswith("500 children")


def test_more_children_and_threads_at_once_than_ever(inside: Inside, programs: dict[str, Path]) -> None:
    """Each child is two connections of kerneld's, its own and its agent's."""
    output = inside.agrees([str(programs["crowd"]), "600", "300"]).output
    assert output == "600 children, sum 600\n300 threads, sum 900\n"


PROCESSES = """
import json, multiprocessing, sys
def square(number):
    return number * number
def fill(array, queue):
    with array.get_lock():
        for at in range(len(array)):
            array[at] += at
    queue.put(json.dumps({"pid differs": True, "first": array[1]}))
if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with context.Pool(3) as pool:
        print(pool.map(square, range(10), chunksize=2))
    array, queue = context.Array("i", 1000), context.Queue()
    children = [context.Process(target=fill, args=(array, queue)) for _ in range(3)]
    for child in children:
        child.start()
    said = [json.loads(queue.get())["pid differs"] for _ in children]
    for child in children:
        child.join()
    print(said, sum(array), [child.exitcode for child in children])
    from multiprocessing import shared_memory
    block = shared_memory.SharedMemory(create=True, size=8192)
    child = context.Process(target=block.buf.__setitem__, args=(5, 7)) if sys.argv[1] == "fork" else None
    if child:
        child.start(); child.join(); print(block.buf[5])
    block.close(); block.unlink()
"""


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_python_with_many_processes(inside: Inside, tmp_path: Path, way: str) -> None:
    python = Path("/usr/bin/python3")
    if not python.exists():
        pytest.skip("this host has no /usr/bin/python3")
    script = tmp_path / "processes.py"
    script.write_text(PROCESSES)
    end = inside.agrees([str(python), str(script), way])
    assert end.status == 0, end.errors


FULL = """
import os, resource
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
print(soft, hard)
opened = []
try:
    while True:
        opened.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    print(error.strerror)
pid = os.fork()
if pid == 0:
    for fd in opened:
        os.close(fd)
    os._exit(7)
print(os.waitpid(pid, 0)[1] >> 8)
os.close(opened.pop())
os.execv("/bin/sh", ["sh", "-c", "ulimit -Sn; ulimit -Hn"])
"""


def test_a_fork_with_no_descriptor_left(inside: Inside) -> None:
    """The host's hard limit has no room for the stub's own descriptors: the program sees a limit below them."""
    words = ["python3", "-u", "-c", FULL]
    outcomes = [inside.outside(_limited(300, 300, argv)) for argv in (inside.command(words), words)]
    assert [end.output.split() for end in outcomes] == [
        [limit, limit, "Too", "many", "open", "files", "7", limit, limit] for limit in ("236", "300")
    ]
    assert {end.status for end in outcomes} == {0}


RAISED = """
import fcntl, os, resource
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
print(soft)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft + 900, hard))
print(fcntl.fcntl(0, fcntl.F_DUPFD, soft + 8), os.dup2(0, soft + 899))
opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(soft + 500)]
print(max(opened))
for fd in opened:
    os.close(fd)
"""


def test_more_descriptors_than_the_limit_at_the_start(inside: Inside) -> None:
    """As valgrind, which keeps its own above the limit that it found, and servers, which raise it for their clients."""
    words = ["python3", "-c", RAISED]
    end, outside = (inside.outside(_limited(200, 2500, argv)) for argv in (inside.command(words), words))
    assert end == outside
    assert end.output == "200\n208 1099\n703\n"


def _limited(soft: int, hard: int, argv: list[str]) -> list[str]:
    """Return the words that run a program with these limits of open files."""
    return ["sh", "-c", f'ulimit -Sn {soft}; ulimit -Hn {hard}; exec "$@"', "sh", *argv]
