"""New tasks of every kind, and programs that change their user: the same inside and outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.native.inside import End, Inside
from tests.support.rights import needs_the_hosts_rights


def test_tasks_are_made_and_refused_as_outside(inside: Inside, programs: dict[str, Path]) -> None:
    output = inside.agrees([str(programs["clones"])]).output
    assert "a child and its brother: 11, then no more: 1" in output
    assert "children of parents that had ended: 30" in output
    assert "80 refused, one made: 100" in output


def test_a_child_is_there_at_once_after_the_fork(inside: Inside, programs: dict[str, Path]) -> None:
    output = inside.agrees([str(programs["newborn"])]).output
    assert output == "seen 12, written 12, mapped 12, limits 12, ended 12\n"


def test_a_task_that_ends_touches_nothing_of_its_own_memory(inside: Inside, programs: dict[str, Path]) -> None:
    """Its stack, its TLS, its list of futexes and the word to be cleared may go as it makes its last call.

    Source: Linux v6.8 kernel/fork.c:mm_release() and kernel/futex/core.c:exit_robust_list(): where the word or the
    list is not there, nothing is written and nothing is said.
    """
    output = inside.agrees([str(programs["leaves"]), "40"]).output
    assert output == "40 40 40 40 40 40\nanother program\n"


def test_a_process_may_end_while_its_threads_begin(inside: Inside, programs: dict[str, Path]) -> None:
    """kerneld refuses a thread whose process has ended. That is no failure: nothing is said, and the status stays."""
    assert inside.run([str(programs["brief_threads"]), "150"]) == End(0, "right: 150\n", "")


def test_threads_and_children_that_wait_for_several_futexes(inside: Inside, programs: dict[str, Path]) -> None:
    """Each sleeps for its parent when it waits there: what it waits for of kerneld does not count."""
    if tuple(map(int, os.uname().release.split(".")[:2])) < (5, 16):
        pytest.skip("this host has no futex_waitv")
    output = inside.agrees([str(programs["waitv"])]).output
    assert output.count("it sleeps\n") == 4
    assert "a child waits: -1 EINTR" in output


@needs_the_hosts_rights
def test_a_program_that_changes_its_user(inside: Inside, programs: dict[str, Path]) -> None:
    end = inside.agrees([str(programs["users"])])
    assert end.output.endswith("another program\n")
    assert end.status == 0


def test_a_program_that_has_all_the_files_it_may_have(inside: Inside, programs: dict[str, Path]) -> None:
    output = inside.agrees([str(programs["many_files"])]).output
    assert "the last descriptor: 63" in output
    assert "a thread: 1, a child of a child: 300" in output


def test_the_first_process_of_a_pid_namespace_ends_by_its_faults_alone(
    inside: Inside, programs: dict[str, Path]
) -> None:
    outside = inside.outside([str(programs["first"])])
    if outside.errors.startswith("unshare:"):
        pytest.skip(f"this host makes no PID namespaces: {outside.errors}")
    ends = {
        "null": 0xB,
        "behind a file": 0x7,
        "illegal": 0x4,
        "no stack": 0xB,
        "divides": 0x8,
        "breakpoint": 0x5,
        "handled": 0x4B00,
        "blocked": 0xB,
        "ignored": 0xB,
        "threads": 0xB,
        "signals itself": 0x700,
        "waits": 0x9,
    }
    expected = "".join(f"{name}: {status:x}\n" for name, status in ends.items())
    assert outside == End(0, expected, "")
    assert inside.run([str(programs["first"])]) == outside


MOUNTS = """
set -e
PATH=$PATH:/usr/sbin:/sbin  # chroot
mount -t tmpfs none "$1"
mkdir "$1/root" "$1/root/bin"
cp /bin/cat "$1/program"
"$1/program" /proc/self/maps | sed 's/.* //' | grep program | uniq
cp /bin/sh "$1/root/bin/"
ldd /bin/sh | grep -o '/[^ ]*' | while read -r file; do mkdir -p "$1/root${file%/*}"; cp "$file" "$1/root$file"; done
chroot "$1/root" /bin/sh -c 'echo changed root'
chroot "$2" /bin/sh -c 'echo the old root'
"""


def test_files_of_a_mount_namespace_of_its_own(inside: Inside, tmp_path: Path) -> None:
    """Those of a file system that is mounted there alone, and those of one that is mounted outside too, in a chroot."""
    options = ["-m"] if os.geteuid() == 0 else ["-r", "-m"]
    mounts = inside.outside(["unshare", *options, "mount", "-t", "tmpfs", "none", str(tmp_path)])
    if mounts.status:
        pytest.skip(f"this host makes no mount namespaces: {mounts.errors}")
    words = ["unshare", *options, "sh", "-c", MOUNTS, "sh", str(tmp_path), "/usr/.."]
    expected = End(0, f"{tmp_path}/program\nchanged root\nthe old root\n", "")
    assert inside.outside(words) == expected
    assert inside.run(words) == expected
