"""Another machine's kernel as the host. A command starts a player there (`player`); its standard streams lead to it.

Owns the command. The player plays the program that comes next while this machine compares the last one.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
from collections import deque
from collections.abc import Generator, Iterator

from kerneld.referee.errors import HostError, LinkError
from kerneld.referee.facts import HostFacts
from kerneld.referee.hosts import parse_state
from kerneld.referee.link import Link, unpack_states
from kerneld.referee.mode import Mode
from kerneld.referee.outcome import State
from kerneld.referee.program import Program, to_json


class RemoteHost:
    """The kernel of the machine on which a player runs."""

    def __init__(self, link: Link, facts: HostFacts) -> None:
        self.facts = facts
        self._link = link
        self._asked: deque[tuple[Program, bool, bool]] = deque()
        """The programs that the player has been asked for, and has not answered yet."""

    def play(self, program: Program, *, pages_out: bool = True, everything: bool = True) -> Generator[State]:
        """Yield the state after each operation, after the player has played all. Raises HostError."""
        wanted = (program, pages_out, everything)
        if wanted not in self._asked:
            self.expect(program, pages_out=pages_out, everything=everything)
        while self._asked.popleft() != wanted:
            self._link.get()
        values, data = self._link.get()
        if "error" in values:
            raise HostError(values["error"])
        for state in unpack_states(self.facts.layout, values, data):
            yield parse_state(state, values["start"], self.facts)

    def expect(self, program: Program, *, pages_out: bool = True, everything: bool = True) -> None:
        """Ask the player for a program."""
        self._link.put({"pages_out": pages_out, "everything": everything}, to_json(program).encode())
        self._asked.append((program, pages_out, everything))


@contextlib.contextmanager
def open_remote_host(command: str, mode: Mode, *, counts: bool = False) -> Iterator[RemoteHost]:
    """Run a command that starts a player. Raises HostError if it is no host for this mode.

    The words of `command` are quoted as in a shell. If the run fails, the command is ended by SIGTERM.
    """
    words = shlex.split(command)
    try:
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )
    except (OSError, IndexError) as error:
        raise HostError(f"the host's command cannot run: {error}") from None
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        link = Link(process.stdout.fileno(), process.stdin.fileno())
        try:
            yield RemoteHost(link, _meet(link, mode, counts))
            link.put({"end": True})
        except BaseException:
            process.terminate()
            raise


def _meet(link: Link, mode: Mode, counts: bool) -> HostFacts:
    with contextlib.suppress(LinkError):
        # A command that has ended may still have said something.
        link.put({"mode": mode, "counts": counts})
    answer, _ = link.get()
    if "facts" not in answer:
        raise HostError(answer.get("error", "the host's command is no player"))
    return HostFacts.from_values(answer["facts"])
