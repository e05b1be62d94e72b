"""A daemon for the tests of a module, and the programs that they share, each compiled once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.compiler import ROOT, build, has_sanitizer, include_directory
from tests.support.daemons import kerneld, private_socket, running_daemon

EXAMPLES = ROOT / "examples" / "c"
LIBRARY = ROOT / "shared" / "c"


@pytest.fixture(scope="module")
def daemon_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a daemon that checks its invariants after every call."""
    directory = tmp_path_factory.mktemp("kerneld")
    path = private_socket(directory)
    with running_daemon(path):
        yield path


@pytest.fixture(scope="session", params=["plain", "sanitized"])
def flags(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The compiler's flags for libkerneld: without and with the sanitizers."""
    common = ("-std=c11", f"-I{include_directory('f24')}", f"-I{LIBRARY}")
    if request.param == "plain":
        return (*common, "-O2")
    if not has_sanitizer(tmp_path_factory.mktemp("probe")):
        pytest.skip("no AddressSanitizer here")
    return (*common, "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="session")
def library_programs(tmp_path_factory: pytest.TempPathFactory, flags: tuple[str, ...]) -> dict[str, Path]:
    """The programs that stand on libkerneld: the examples, and the check of the library."""
    directory = tmp_path_factory.mktemp("programs")
    sources = [EXAMPLES / "target.c", EXAMPLES / "kd_inspector.c", ROOT / "tests" / "c" / "library_check.c"]
    return {source.stem: build(directory / source.stem, [source, LIBRARY / "kerneld.c"], *flags) for source in sources}


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An XDG_CACHE_HOME that is empty at first: the first run builds the library."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def inspectors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The example inspector, compiled for each semester."""
    directory = tmp_path_factory.mktemp("inspectors")
    return {
        abi: build(directory / abi, [EXAMPLES / "inspector.c"], f"-I{include_directory(abi)}")
        for abi in ("f24", "f25", "f23")
    }


@pytest.fixture(scope="session")
def target_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example target."""
    flags = (f"-I{include_directory('f24')}", f"-I{LIBRARY}")
    output = tmp_path_factory.mktemp("target") / "target"
    return build(output, [EXAMPLES / "target.c", LIBRARY / "kerneld.c"], *flags)


@pytest.fixture
def unchecked_daemon(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A daemon without invariant checks, which would take most of many opens' time: its socket and its pid."""
    directory = tmp_path / "kerneld"
    directory.mkdir(mode=0o700)
    path = directory / "kerneld.sock"
    assert kerneld(path, "start", "--detach", "--ram", "64M").returncode == 0
    status = kerneld(path, "status").stdout
    yield path, int(status.split("Pid:")[1].split()[0])
    kerneld(path, "stop")
