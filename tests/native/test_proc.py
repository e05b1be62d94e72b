"""What a program inside reads under /proc about memory is kerneld's, of itself and of others inside."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.native.inside import Inside
from tests.support.rights import can_become_others

LINE = re.compile(r"^[0-9a-f]+-[0-9a-f]+ [r-][w-][x-][ps] [0-9a-f]{8} [0-9a-f]{2,}:[0-9a-f]{2,} \d+ *(.*)$")


def test_maps_are_the_programs_own(inside: Inside) -> None:
    lines = inside.run(["cat", "/proc/self/maps"]).output.splitlines()
    names = []
    for line in lines:
        found = LINE.match(line)
        assert found is not None, line
        names.append(found[1])
    assert {"[heap]", "[stack]"} <= set(names)
    assert any(name.endswith("/cat") for name in names)
    assert not any("kerneld" in name for name in names)


@pytest.mark.parametrize("pid", ["self", "thread-self", "$$", "self/task/$$"])
def test_every_name_of_a_process_leads_there(inside: Inside, pid: str) -> None:
    assert "[stack]" in inside.run(["sh", "-c", f"read -r line < /proc/{pid}/maps; exec cat /proc/{pid}/maps"]).output


def test_status_is_the_hosts_with_our_lines_of_memory(inside: Inside) -> None:
    inner, outer = (run(["cat", "/proc/self/status"]).output.splitlines() for run in (inside.run, inside.outside))
    names = [line.split(":")[0] for line in inner]
    assert names == [line.split(":")[0] for line in outer]
    assert int(dict(line.split(":\t") for line in inner)["VmRSS"].split()[0]) > 0


def test_stat_has_our_fields_of_memory(inside: Inside) -> None:
    stat, statm = inside.run(["cat", "/proc/self/stat", "/proc/self/statm"]).output.splitlines()
    fields = stat.rsplit(")", 1)[1].split()
    assert len(fields) == 50
    assert int(fields[23 - 3]) == int(statm.split()[0]) * 4096
    assert int(fields[28 - 3]) >> 32 == 0x7FFF


def test_the_machines_memory_is_ours(inside: Inside) -> None:
    inner = inside.run(["cat", "/proc/meminfo"]).output
    assert inner.startswith("MemTotal:         524280 kB")


def test_sysinfo_is_ours(inside: Inside) -> None:
    """glibc's sysconf() and qsort() ask it for the memory."""
    lines = inside.run(["free", "-b"]).output.splitlines()
    pages = inside.run(["getconf", "_PHYS_PAGES"]).output
    assert int(pages) * 4096 == int(lines[1].split()[1]) == 524280 << 10
    free = int(inside.run(["getconf", "_AVPHYS_PAGES"]).output) * 4096
    assert 0 < free <= int(lines[1].split()[3]) + (16 << 20)


def test_others_inside_are_seen_and_the_hosts_as_they_are(inside: Inside, programs: dict[str, Path]) -> None:
    process = inside.start([str(programs["waits"])])
    assert process.stdout is not None
    assert process.stdout.readline()
    assert "10000000-10001000 r--p" in inside.run(["cat", f"/proc/{process.pid}/maps"]).output
    process.communicate("")
    assert inside.agrees(["cat", "/proc/1/comm"]).status == 0


def test_pagemap_is_read_in_any_piece(inside: Inside) -> None:
    python = Path("/usr/bin/python3")
    if not python.exists():
        pytest.skip("this host has no /usr/bin/python3")
    program = (
        "import ctypes, mmap, os, struct\n"
        "m = mmap.mmap(-1, 8 * 4096); m[4096] = 1\n"
        "at = ctypes.addressof(ctypes.c_char.from_buffer(m))\n"
        "f = open('/proc/self/pagemap', 'rb', buffering=0)\n"
        "f.seek(at // 4096 * 8); words = struct.unpack('8Q', f.read(64))\n"
        "copy = os.dup(f.fileno())\n"
        "assert struct.unpack('8Q', os.pread(copy, 64, at // 4096 * 8)) == words\n"
        "print([word >> 63 for word in words])\n"
    )
    assert inside.agrees([str(python), "-c", program]).output == "[0, 1, 0, 0, 0, 0, 0, 0]\n"


def test_the_programs_file_is_its_own(inside: Inside) -> None:
    assert inside.agrees(["readlink", "/proc/self/exe"]).status == 0


OPENED = """
import os, resource
directory = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY)
os.symlink("/proc/self/maps", "link")
texts = [os.fdopen(os.open("maps", os.O_RDONLY, dir_fd=directory)).read(), open("link").read()]
os.chdir("/proc/self")
texts += [open("maps").read(), open(f"task/{os.getpid()}/maps").read()]
print(["[stack]" in text and "kerneld" not in text for text in texts])
for name in "numa_maps", "map_files":
    try:
        os.open(name, os.O_RDONLY)
    except OSError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 41))
print([line.split() for line in open("limits") if "address" in line])
print(open("environ", "rb").read().startswith(b"A=b\\0"))
print(os.sysconf("SC_PHYS_PAGES"), open("/proc/sys/vm/max_map_count").read(), open("/proc/swaps").read().split()[5:])
try:
    open("/proc/meminfo", "w")
except OSError as error:
    print(error)
"""


def test_files_are_ours_by_whatever_name(inside: Inside, tmp_path: Path) -> None:
    python = Path("/usr/bin/python3")
    if not python.exists():
        pytest.skip("this host has no /usr/bin/python3")
    end = inside.run(["env", "-i", "A=b", str(python), "-c", OPENED], directory=tmp_path)
    assert end.errors == ""
    assert end.output.splitlines() == [
        "[True, True, True, True]",
        "[Errno 2] No such file or directory: 'numa_maps'",
        "[Errno 2] No such file or directory: 'map_files'",
        "[['Max', 'address', 'space', '1099511627776', '2199023255552', 'bytes']]",
        "True",
        "131070 65530",
        " ['/dev/kerneld-swap', 'partition', '65532', '0', '-2']",
        "[Errno 13] Permission denied: '/proc/meminfo'",
    ]


MEMORY = """
import ctypes, mmap, os, signal
memory = mmap.mmap(-1, 3 * 4096)
memory[4096:4101] = b"hello"
at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
pid = os.fork()
if not pid:
    signal.pause()
for number in os.getpid(), pid:
    fd = os.open(f"/proc/{number}/mem", os.O_RDWR)
    print(os.pread(fd, 5, at + 4096), os.pwrite(fd, b"HE", at + 4096), os.pread(fd, 6, at + 4095))
    os.lseek(fd, at + 4096, os.SEEK_SET)
    print(os.read(fd, 2), os.read(fd, 2), os.lseek(fd, 0, os.SEEK_CUR) - at)
    try:
        os.pread(fd, 5, 4096)
    except OSError as error:
        print(error)
private = mmap.mmap(-1, 2 * 4096, mmap.MAP_PRIVATE)
base = ctypes.addressof(ctypes.c_char.from_buffer(private))
private[0:4] = b"text"
ctypes.CDLL(None).mprotect(ctypes.c_void_p(base), 8192, 0)
ctypes.CDLL(None).mprotect(ctypes.c_void_p(at), 4096, 1)
own = os.open("/proc/self/mem", os.O_RDWR)
print(os.pread(own, 5, base), os.pwrite(own, b"more", base + 4094), os.pread(own, 6, base + 4093))
for call in lambda: os.pwrite(own, b"x", at), lambda: os.pread(own, 9, 1 << 62):
    try:
        print(call())
    except OSError as error:
        print(error)
print(os.pread(own, 4096, at + 2 * 4096 + 4000)[:96])
print(memory[4096:4101])
os.kill(pid, 9)
print(os.waitpid(pid, 0)[1])
"""


def test_memory_is_read_and_written_through_mem(inside: Inside) -> None:
    python = Path("/usr/bin/python3")
    if not python.exists():
        pytest.skip("this host has no /usr/bin/python3")
    assert inside.agrees([str(python), "-c", MEMORY]).status == 0


@pytest.mark.parametrize("words", [["free", "-k"], ["top", "-bn1"], ["pmap", "-x"], ["ps", "-o", "rss=,args="]])
def test_what_shows_memory_shows_ours(inside: Inside, programs: dict[str, Path], words: list[str]) -> None:
    if shutil.which(words[0]) is None:
        pytest.skip(f"this host has no {words[0]}")
    process = inside.start([str(programs["waits"])])
    assert process.stdout is not None
    assert process.stdout.readline()
    of_process = {"top": ["-p", str(process.pid)], "pmap": [str(process.pid)], "ps": ["-p", str(process.pid)]}
    said = inside.run([*words, *of_process.get(words[0], [])]).output
    expected = {
        "free": r"Mem: +524280 ",
        "top": r"512\.0 total",
        "pmap": r"0000000010000000 +4 +4 +4 r",
        "ps": r"\d+ .*waits",
    }
    assert re.search(expected[words[0]], said), said
    resident = inside.run(["cat", f"/proc/{process.pid}/statm"]).output.split()[1]
    if words[0] == "ps":
        assert int(said.split()[0]) == 4 * int(resident)
    process.communicate("")


ITSELF = """
import os, stat, sys
if len(sys.argv) > 1:
    print("again", open("/proc/self/comm").read().strip(), sys.argv[1], flush=True)
    sys.exit(3)
for name in "self", "thread-self", str(os.getpid()):
    link = f"/proc/{name}/exe"
    print(os.readlink(link), open(link, "rb").read(4), os.stat(link).st_ino == os.stat(os.readlink(link)).st_ino)
    print(stat.S_ISLNK(os.lstat(link).st_mode), os.access(link, os.X_OK))
sys.stdout.flush()
os.execv("/proc/self/exe", ["python", "-c", sys.orig_argv[2], "argument"])
"""


def test_a_program_executes_and_reads_itself(inside: Inside) -> None:
    python = Path("/usr/bin/python3")
    if not python.exists():
        pytest.skip("this host has no /usr/bin/python3")
    end = inside.agrees([str(python), "-c", ITSELF])
    assert end.output.endswith("again exe argument\n"), end
    assert end.status == 3


def test_files_of_a_process_that_it_writes(inside: Inside, programs: dict[str, Path], tmp_path: Path) -> None:
    """Which pages count as used, and how much the OOM killer likes a process."""
    words = [str(programs["clear_refs"]), str(tmp_path / "file")]
    assert "clear 3: 1 \nresident 32 3\n" in inside.agrees(words).output
    used = [line for line in inside.run([*words, "then"]).output.splitlines() if line.startswith("used")]
    assert [line.split(", resident")[0] for line in used] == [
        "used: 0 0, then: 4 4", "used: 0 32, then: 4 32", "used: 32 0, then: 32 4", "used: 32 32, then: 32 32",
    ]  # fmt: skip


PRIVATE_CHILD = "1 1 1 1 1"
WRITTEN = """\
new: 1 1 1 1 1 1
new: sd 1
cleared: 0 0 0 0 0 0
cleared: sd 0
read: 0 0 0 0 0 0
written: 0 1 1 0 1 0
written after mprotect: 1 1 1 0 1 0
written by a system call: 1 1 1 1 1 0
its parent, from a child: 1 1 1 1 1 0
in a child: {child} 1
its parent: 1 1 1 1 1 0
moved: 1 1 1 1 1 1
cleared again: 0 0 0 0 0 0
"""


def test_pages_that_are_written_after_clear_refs(inside: Inside, programs: dict[str, Path], tmp_path: Path) -> None:
    """Also by a program whose pages the host has mapped writable. A host that has soft-dirty bits is compared."""
    words = [str(programs["soft_dirty"]), str(tmp_path / "file")]
    end = inside.run(words)
    scenes, child = end.output.split("anonymous\n")[1], PRIVATE_CHILD
    for name in ("shared", "memory file", "file", "private file"):
        scene, scenes = scenes.split(f"{name}\n", 1)
        assert scene == WRITTEN.format(child=child)
        # A child gets the entries of private memory alone.
        child = PRIVATE_CHILD if name == "private file" else "0 0 0 0 0"
    assert scenes == WRITTEN.format(child=child) + "threads: 0 wrong\n"
    if " sd" in Path("/proc/self/smaps").read_text():
        assert inside.agrees(words) == end


DESCRIPTORS = """import os, resource, subprocess, sys
def names(directory):
    listed = sorted(int(name) for name in os.listdir(directory))
    return [name for name in listed if name < 200], len(listed) < 100
child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
child.stdin.write(b"x")
child.stdout.read(1)  # it has opened all that it opens
own = os.getpid()
for directory in ("/proc/self/fd", "/proc/thread-self/fd", "/dev/fd", "/proc/self/fdinfo", f"/proc/{own}/task/{own}/fd",
                  f"/proc/{child.pid}/fd", f"/proc/{child.pid}/fdinfo"):
    print(directory.replace(str(own), "own").replace(str(child.pid), "child"), names(directory))
child.communicate()
hard = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 40000)
hidden = [*range(32768, 32788), *range(33772, 33792), *range(hard - 1100, hard + 1100)]
hidden = [number for number in hidden if number > 200]
def met(call):
    found = 0
    for number in hidden:
        try:
            call(number)
            found += 1
        except FileNotFoundError:
            pass
    return found
directory = os.open("/proc/self/fd", os.O_RDONLY)
print(met(lambda n: os.stat(f"/proc/self/fd/{n}")), met(lambda n: os.readlink(f"/dev/fd/{n}")))
print(met(lambda n: os.lstat(f"/proc/self/fdinfo/{n}")), met(lambda n: os.open(f"/proc/{own}/fd/{n}", os.O_RDONLY)))
print(met(lambda n: os.stat(str(n), dir_fd=directory)), met(lambda n: os.readlink(str(n), dir_fd=directory)))
os.chdir("/proc/self")
print(met(lambda n: os.stat(f"fd/{n}")), met(lambda n: os.access(f"fd/{n}", 0) or os.stat(f"fd/{n}")))
os.chdir(sys.argv[1])
for number in ("32768", "19500", "3500"):
    open(number, "w").close()
print(sorted(os.listdir(".")), os.stat("32768").st_size)
maps = os.open("/proc/self/maps", os.O_RDONLY)
print(os.readlink(f"/proc/self/fd/{maps}").replace(str(own), "own"), os.readlink(str(maps), dir_fd=directory)[:6])
for name in os.listdir("/proc/self/fd"):
    if int(name) > 2:
        try:
            os.close(int(name))
        except OSError as error:
            print("the listing's own" if error.errno == 9 else error)
print(open("/proc/self/statm").read().split()[0] != "0", os.listdir(".") != [])
print(subprocess.run(["sh", "-c", "ls /proc/self/fd"], close_fds=True, capture_output=True, text=True).stdout.split())
"""


def test_a_program_meets_no_descriptor_of_the_machine(inside: Inside, tmp_path: Path) -> None:
    end = inside.agrees([sys.executable, "-I", "-c", DESCRIPTORS, str(tmp_path)])
    assert (end.status, end.errors) == (0, "")
    assert end.output.count("0 0\n") == 4
    assert "/proc/own/maps" in end.output


_LOOKED_INTO = """
import ctypes, os, sys
PR_SET_DUMPABLE = 4
def become_another():
    if not os.geteuid():
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
ready, tell = os.pipe()
end, stay = os.pipe()
for dumpable in sys.argv[1:]:
    child = os.fork()
    if not child:
        os.close(stay)
        become_another()
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, int(dumpable), 0, 0, 0)
        os.write(tell, b"x")
        os.read(end, 1)
        os._exit(0)
    os.read(ready, 1)
    looker = os.fork()
    if not looker:
        become_another()
        for name in "maps", "smaps", "pagemap":
            try:
                os.close(os.open(f"/proc/{child}/{name}", os.O_RDONLY))
                print(dumpable, name, flush=True)
            except OSError as error:
                print(dumpable, name, os.strerror(error.errno), flush=True)
        os._exit(0)
    os.waitpid(looker, 0)
    os.kill(child, 9)
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(os.geteuid() == 0 and not can_become_others(), reason="this user namespace has no other user")
def test_a_program_says_whether_others_of_its_user_may_look_into_it(inside: Inside) -> None:
    """PR_SET_DUMPABLE 1 and 0. Source: Linux v6.8 kernel/ptrace.c:__ptrace_may_access()."""
    output = inside.agrees([sys.executable, "-c", _LOOKED_INTO, "1", "0"]).output
    assert output.splitlines()[::3] == ["1 maps", "0 maps Permission denied"]
