"""Scripts (`#!`): their interpreters, inside as outside."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.native.inside import Inside

_FIRST_LINES = (
    [
        "#!/bin/echo",
        "#!\t/bin/echo  a  b \t\n",
        "#!/bin/echo \0x\n",
        "#!\0/bin/echo\n",
        "#!",
        "#!  \n",
        "#!/nowhere\n",
        "#!/tmp\n",
    ]
    + ["#!/bin/echo " + 243 * "x" + " z\n", "#!/bin/echo" + 244 * " " + "z\n"]
    + ["#!" + slashes * "/" + "bin/echo\n" for slashes in (245, 246)]
    + ["#!" + slashes * "/" + "bin/echo x\n" for slashes in (245, 246)]
    + ["#!./0 once\n", "#!./14 twice\n", "#!./15 x\n", "#!./16 four\n", "#!./17 five\n"]
)
_EXECUTED = """
import os, subprocess, sys
def attempt(program, **given):
    try:
        return subprocess.run(["name", "p"], executable=program, capture_output=True, **given)
    except OSError as error:
        return os.strerror(error.errno)
for script in range(int(sys.argv[1])):
    print(script, attempt(f"./{script}"))
for inherited in True, False:
    child = os.fork()
    if not child:
        script = os.open("0", os.O_RDONLY)
        os.set_inheritable(script, inherited)
        try:
            os.execve(script, ["name", "p"], {})
        except OSError as error:
            print(os.strerror(error.errno), flush=True)
            os._exit(1)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def test_a_script_names_its_interpreter(inside: Inside, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text('#!/bin/sh -e\necho "$0" "$@"\nfalse\n')
    script.chmod(0o755)
    assert inside.agrees([str(script), "a", "b c"]).status == 1


def test_a_script_on_the_path(inside: Inside, tmp_path: Path) -> None:
    """Its interpreter gets the path that was found: by the name alone it would look in the working directory."""
    script = tmp_path / "on-the-path"
    script.write_text('#!/bin/sh\necho "$0" "$@"\n')
    script.chmod(0o755)
    with_path = ["sh", "-c", 'PATH=$1:$PATH; shift; exec "$@"', "sh", str(tmp_path)]
    end = inside.outside([*with_path, *inside.command(["on-the-path", "a"])])
    assert end == inside.outside([*with_path, "on-the-path", "a"])
    assert end.output == f"{script} a\n"


def test_the_first_lines_of_scripts(inside: Inside, tmp_path: Path) -> None:
    """Its words, its length, an interpreter that is a script too, and a script that its interpreter would not find.

    Source: Linux v6.8 fs/binfmt_script.c: load_script(), and fs/exec.c: exec_binprm() for how many may follow.
    """
    for number, line in enumerate(_FIRST_LINES):
        (tmp_path / str(number)).write_text(line)
        (tmp_path / str(number)).chmod(0o755)
    output = inside.agrees(
        [sys.executable, "-I", "-u", "-c", _EXECUTED, str(len(_FIRST_LINES))], directory=tmp_path
    ).output
    assert "b'./0 once ./14 twice ./15 x ./16 four ./17 p\\n'" in output
    assert "18 Too many levels" in output
