"""What `make hosts` understands, and what it makes of it: nothing here starts a guest."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from tests.hosts import guest, job, qemu, root
from tests.hosts.command_line import Choice, parse
from tests.hosts.trouble import HostsError

FILES = qemu.Files(*(Path("/c", name) for name in ("vmlinuz", "initrd", "ro,ot", "job", "out", "status", "console")))


def test_the_command_begins_after_two_hyphens() -> None:
    choice = parse(["--kernel", "6.12", "--tcg", "--user", "--", "kerneld", "referee", "--programs", "5"])
    assert choice == Choice("6.12", ("kerneld", "referee", "--programs", "5"), tcg=True, as_user=True)


@pytest.mark.parametrize(
    "argv", [[], ["--kernel", "6.1"], ["--smp", "0", "--", "true"], ["--tmp", "fat", "--", "true"]]
)
def test_a_line_that_asks_for_nothing_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        parse(argv)
    assert error.value.code == 2
    assert "make hosts: error" in capsys.readouterr().err


def _following(words: list[str], option: str) -> list[str]:
    return [words[i + 1] for i, word in enumerate(words) if word == option]


def test_kvm_takes_the_hosts_processor_and_tcg_all_that_it_has() -> None:
    choice = Choice("6.1", ("true",))
    with_kvm = qemu.command(choice, FILES, kvm=True)
    assert (_following(with_kvm, "-accel"), _following(with_kvm, "-cpu")) == (["kvm"], ["host"])
    without = qemu.command(choice, FILES, kvm=False)
    assert (_following(without, "-accel"), _following(without, "-cpu")) == (["tcg,thread=multi"], ["max"])


def test_tcg_and_a_processor_can_be_asked_for() -> None:
    choice = Choice("6.1", ("true",), tcg=True, cpu="max,pku=off", processors=1, memory_mib=512, append="nopti")
    words = qemu.command(choice, FILES, kvm=True)
    assert _following(words, "-accel") == ["tcg,thread=multi"]
    assert _following(words, "-cpu") == ["max,pku=off"]
    assert (_following(words, "-smp"), _following(words, "-m")) == (["1"], ["512M"])
    assert _following(words, "-append")[0].endswith(" nopti")


def test_the_root_is_not_changed_and_a_comma_in_a_name_is_no_option() -> None:
    system, _, out = _following(qemu.command(Choice("6.1", ("true",)), FILES, kvm=False), "-drive")
    assert system == "if=virtio,format=raw,snapshot=on,file=/c/ro,,ot"
    assert out == "if=virtio,format=raw,file=/c/out"


def test_kvm_needs_a_processor_that_has_it(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()
    assert qemu.kvm_works("flags : fpu vmx", str(device))
    assert not qemu.kvm_works("flags : fpu hypervisor", str(device))
    assert not qemu.kvm_works("flags : fpu svm", str(tmp_path / "none"))


def test_a_command_is_quoted_for_the_guests_shell() -> None:
    assert job.script(Choice("6.1", ("sh", "-c", "echo 'a b'"))) == "exec sh -c 'echo '\"'\"'a b'\"'\"''\n"
    assert job.settings(Choice("6.1", ("x",), as_user=True, tmp="xfs")) == "AS_USER=yes\nSTDIN=no\nFILE_SYSTEM=xfs\n"


def test_a_command_may_read_from_here() -> None:
    choice = parse(["--stdin", "--", "kerneld", "referee", "--player"])
    assert choice.stdin
    assert "STDIN=yes\n" in job.settings(choice)


def test_what_a_guest_brings_out_is_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / "out"
    with tarfile.open(archive, "w") as tar:
        for name, data in (("./referee-a-1.json", b"[]"), ("./deep/other", b"x")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert job.bring_out(archive, tmp_path / "to") == ["deep/other", "referee-a-1.json"]
    assert (tmp_path / "to/referee-a-1.json").read_bytes() == b"[]"


def test_a_guest_that_brought_out_nothing(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(bytes(1024))
    assert job.bring_out(tmp_path / "out", tmp_path) == []


def test_another_user_than_root_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(HostsError, match="only root"):
        guest.check_tools()


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda program, path: None if program == "debootstrap" else program)
    with pytest.raises(HostsError, match=r"debootstrap is missing \(on Debian: apt install debootstrap\)"):
        guest.check_tools()


@pytest.mark.parametrize(("status", "kept"), [("0", False), ("1", True)])
def test_what_a_failed_command_said_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str, kept: bool
) -> None:
    """It is on the console if the command reads from here, and the guest's folder goes."""

    def boot(_choice: Choice, files: qemu.Files, *, kvm: bool) -> None:
        files.status.write_text(f"{status}\n")
        files.console.write_text("Traceback")

    monkeypatch.setattr(guest, "check_tools", lambda: None)
    monkeypatch.setattr(root.GuestRoot, "kernel", lambda *_: tmp_path / "6.1")
    monkeypatch.setattr(guest, "_boot", boot)
    said: list[str] = []
    assert guest.run(Choice("6.1", ("true",), stdin=True, cache=tmp_path), said.append) == int(status)
    assert (tmp_path / "console").exists() is kept
    assert any(line.endswith(f"see {tmp_path / 'console'}") for line in said) is kept
