"""linux/shadowpt.h of each semester against shared/uapi: offsets and values, as a compiled program prints them."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import pytest

from shared.uapi.page import PAGE_SIZE
from shared.uapi.shadowpt import MAX_SPT_RANGE, SHADOW_PTE, USER_SHADOW_PT, Layout, Spte, SpteF23, table_bytes
from shared.uapi.syscalls import Nr
from tests.support.compiler import ROOT, build, include_directory
from tests.support.patience import SECONDS

PTE_FIELDS = ("vaddr", "pfn", "state_flags")
TABLE_FIELDS = ("start_vaddr", "end_vaddr", "entries")
NUMBERS: dict[str, dict[str, int]] = {
    "f24": {
        "open": Nr.SHADOWPT_OPEN,
        "close": Nr.SHADOWPT_CLOSE,
        "start": Nr.SHADOWPT_START,
        "stop": Nr.SHADOWPT_STOP,
        "page_contents": Nr.SHADOWPT_PAGE_CONTENTS,
    },
    "f25": {"open": 467, "close": 468, "start": 469, "stop": 470},
    "f23": {"enable": 451, "disable": 452, "page_contents": 453},
    "f25-part1": {"open": 467, "close": 468},
}
LAYOUT = {"f24": Layout.F24, "f25": Layout.F24, "f23": Layout.F23}


def expected(abi: str) -> dict[str, int]:
    """Return every name that the program prints, with what the Python side says."""
    flags = SpteF23.__members__ if LAYOUT[abi] is Layout.F23 else Spte.__members__
    values = {f"SPTE_{name}": int(flags[name]) for name in flags}
    for name in flags:
        words = name.lower()
        values[f"is_{words}(SPTE_{name})"] = int(flags[name])
        values[f"is_{words}(0)"] = 0
    values |= {f"offsetof(struct shadow_pte, {field})": index * 8 for index, field in enumerate(PTE_FIELDS)}
    values |= {f"offsetof(struct user_shadow_pt, {field})": index * 8 for index, field in enumerate(TABLE_FIELDS)}
    values |= {"sizeof(struct shadow_pte)": SHADOW_PTE.size, "sizeof(struct user_shadow_pt)": USER_SHADOW_PT.size}
    values |= {"MAX_SPT_RANGE": MAX_SPT_RANGE, "SPT_TABLE_BYTES(0x1000UL, 0x456000UL)": table_bytes(0x1000, 0x456000)}
    return values | numbers(abi)


def numbers(abi: str) -> dict[str, int]:
    """Return each name of a call's number."""
    values = {"PAGE_SIZE": PAGE_SIZE}
    for name, number in NUMBERS[abi].items():
        for prefix in ("__NR", "SYS", "NR"):
            values[f"{prefix}_shadowpt_{name}"] = int(number)
    return values


def printed(directory: Path, abi: str, suffix: str, compiler: str, *flags: str) -> dict[str, int]:
    names = list(expected(abi) if abi in LAYOUT else numbers(abi))
    lines = [f'    printf("%s\\t%lu\\n", "{name}", (unsigned long)({name}));' for name in names]
    source = directory / f"values.{suffix}"
    # Twice: the guard holds.
    source.write_text(
        "#include <linux/shadowpt.h>\n#include <linux/shadowpt.h>\n#include <stddef.h>\n#include <stdio.h>\n"
        + "int main(void)\n{\n"
        + "\n".join(lines)
        + "\n    return 0;\n}\n"
    )
    include = f"-I{include_directory(abi)}"
    program = build(directory / "values", [source], include, "-pedantic", *flags, compiler=compiler)
    output = subprocess.run([program], capture_output=True, text=True, check=True, timeout=SECONDS).stdout
    return {name: int(value) for name, value in (line.split("\t") for line in output.splitlines())}


@pytest.mark.parametrize("abi", ["f24", "f25", "f23"])
def test_c_and_python_agree(tmp_path: Path, abi: str) -> None:
    assert printed(tmp_path, abi, "c", "cc", "-std=c11") == expected(abi)


@pytest.mark.parametrize("abi", ["f24", "f25", "f23"])
def test_cpp_and_python_agree(tmp_path: Path, abi: str) -> None:
    assert printed(tmp_path, abi, "cpp", "c++", "-std=c++17") == expected(abi)


def test_entries_is_a_pointer_to_entries_and_each_field_an_unsigned_long(tmp_path: Path) -> None:
    source = tmp_path / "types.c"
    source.write_text(
        "#include <linux/shadowpt.h>\n"
        "static struct shadow_pte pte;\n"
        "static struct user_shadow_pt table = { 0, 4096, &pte };\n"
        "int main(void)\n{\n"
        "    unsigned long *field = &table.entries[0].state_flags;\n"
        "    return (int)*field;\n}\n"
    )
    program = build(tmp_path / "types", [source], f"-I{include_directory('f24')}")
    assert subprocess.run([program], check=False, timeout=SECONDS).returncode == 0


@pytest.mark.parametrize(("suffix", "compiler"), [("c", "cc"), ("cpp", "c++")])
def test_the_first_part_of_fall_2025(tmp_path: Path, suffix: str, compiler: str) -> None:
    assert printed(tmp_path, "f25-part1", suffix, compiler) == numbers("f25-part1")


OWN_NAMES = {
    "macros": "#define {name} {value}",
    "macros in brackets": "#define {name} ({value})",
    "of the number's other name": "#define {name} __NR_shadowpt_{call}",
    "where there is none": "#ifndef {name}\n#define {name} {value}\n#endif",
}


@pytest.mark.parametrize("abi", NUMBERS)
@pytest.mark.parametrize("form", OWN_NAMES)
@pytest.mark.parametrize("is_first", [True, False], ids=["before the header", "after it"])
@pytest.mark.parametrize(("suffix", "compiler"), [("c", "cc"), ("cpp", "c++")])
def test_a_program_may_define_the_names_itself(
    tmp_path: Path, abi: str, form: str, *, is_first: bool, suffix: str, compiler: str
) -> None:
    """As one has to with the headers of a stock kernel; warnings are errors here."""
    own = [
        OWN_NAMES[form].format(name=f"{prefix}_shadowpt_{call}", value=number, call=call)
        for prefix in ("SYS", "NR")
        for call, number in NUMBERS[abi].items()
    ]
    own.append("#ifndef PAGE_SIZE\n#define PAGE_SIZE 4096UL\n#endif" if "none" in form else "#define PAGE_SIZE 4096UL")
    include = ["#include <linux/shadowpt.h>"]
    uses = [f"(long)(SYS_shadowpt_{call}) - (long)(NR_shadowpt_{call})" for call in NUMBERS[abi]]
    source = tmp_path / f"own.{suffix}"
    lines = [*own, *include] if is_first else [*include, *own]
    end = ["#include <sys/user.h>", f"int main(void) {{ return (int)({' + '.join(uses)} + PAGE_SIZE - 4096); }}", ""]
    # <sys/user.h> has a PAGE_SIZE too; it is a system's header, which nobody is warned of.
    source.write_text("\n".join([*lines, *end]))
    program = build(tmp_path / "own", [source], f"-I{include_directory(abi)}", compiler=compiler)
    assert subprocess.run([program], check=False, timeout=SECONDS).returncode == 0


@pytest.mark.parametrize("abi", NUMBERS)
@pytest.mark.parametrize(("suffix", "compiler"), [("c", "cc -std=c11"), ("cpp", "c++ -std=c++20")])
def test_a_program_may_choose_between_the_names(tmp_path: Path, abi: str, suffix: str, compiler: str) -> None:
    """Compilers warn where constants of two enumerations are compared, added, or the two results of one choice."""
    values = {name: value for name, value in numbers(abi).items() if not name.startswith("__NR")}
    pairs = list(itertools.product(values, repeat=2))
    uses = [f"(argc > 1 ? {one} : {other}) + ({one} - {other})" for one, other in pairs]
    uses += [f"({one} == {other})" for one, other in pairs if one != other]
    total = sum(values[one] + (one != other and values[one] == values[other]) for one, other in pairs)
    source = tmp_path / f"choose.{suffix}"
    source.write_text(
        "#include <linux/shadowpt.h>\nint main(int argc, char **argv)\n{\n\t(void)argv;\n"
        f"\treturn {' + '.join(uses)} == {total} ? 0 : 1;\n}}\n"
    )
    command, *flags = compiler.split()
    program = build(tmp_path / "choose", [source], f"-I{include_directory(abi)}", *flags, compiler=command)
    assert subprocess.run([program], check=False, timeout=SECONDS).returncode == 0


def test_a_program_may_have_variables_of_these_names(tmp_path: Path) -> None:
    source = tmp_path / "local.c"
    source.write_text(
        "#include <linux/shadowpt.h>\n#include <unistd.h>\nint main(void)\n{\n"
        "    long PAGE_SIZE = sysconf(_SC_PAGESIZE), SYS_shadowpt_open = 462;\n"
        "    return PAGE_SIZE > 0 && SYS_shadowpt_open == __NR_shadowpt_open ? 0 : 1;\n}\n"
    )
    program = build(tmp_path / "local", [source], f"-I{include_directory('f24')}")
    assert subprocess.run([program], check=False, timeout=SECONDS).returncode == 0


@pytest.mark.parametrize("abi", ["f24", "f25", "f23", "f25-part1"])
def test_headers_install(tmp_path: Path, abi: str) -> None:
    command = ["make", "-C", str(ROOT), "headers_install", f"INSTALL_HDR_PATH={tmp_path}/a b/usr", f"ABI={abi}"]
    subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
    installed = tmp_path / "a b" / "usr" / "include" / "linux" / "shadowpt.h"
    assert installed.read_bytes() == (include_directory(abi) / "linux" / "shadowpt.h").read_bytes()


def test_headers_install_is_of_fall_2024_by_default(tmp_path: Path) -> None:
    command = ["make", "-C", str(ROOT), "headers_install", f"INSTALL_HDR_PATH={tmp_path}"]
    subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
    header = (tmp_path / "include" / "linux" / "shadowpt.h").read_text()
    assert f"__NR_shadowpt_open {int(Nr.SHADOWPT_OPEN)}" in header
