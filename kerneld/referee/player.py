"""Plays the referee's programs on this machine for a referee on another one. Answers to `kerneld.referee.remote`.

It sends what it has read, and compares and parses nothing: the machine may be a slow one. Knows nothing about kerneld.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from kerneld.referee.errors import HostError, LinkError
from kerneld.referee.hosts import ThisHost, open_this_host
from kerneld.referee.link import Link, pack_states
from kerneld.referee.mode import Mode
from kerneld.referee.program import from_json


def serve() -> None:
    """Play what standard input asks for, and answer on standard output, until it asks for the end.

    Whatever goes wrong is told to the referee: nobody reads this program's standard error. Raises LinkError if the
    referee has gone.
    """
    with _standard_streams() as link:
        asked, _ = link.get()
        try:
            with open_this_host(Mode(asked["mode"]), counts=asked["counts"]) as host:
                link.put({"facts": host.facts.to_values()})
                while _answer(link, host):
                    pass
        except LinkError:
            raise
        except HostError as error:
            link.put({"error": str(error)})
        except Exception as error:
            link.put({"error": f"the player has failed: {error!r}"})
            raise


def _answer(link: Link, host: ThisHost) -> bool:
    """Answer one request. Return whether there may be more."""
    asked, text = link.get()
    if "pages_out" not in asked:
        return False
    states = list(host.play_unparsed(from_json(text.decode()), **asked))
    values, data = pack_states(states)
    link.put({"start": host.start_totals, **values}, data)
    return True


@contextmanager
def _standard_streams() -> Iterator[Link]:
    """Yield a link over the standard streams. Whatever this process or its children print goes to standard error."""
    sys.stdout.flush()
    receive, send = os.dup(0), os.dup(1)
    with open(os.devnull, "rb") as null:
        os.dup2(null.fileno(), 0)
    os.dup2(2, 1)
    try:
        yield Link(receive, send)
    finally:
        os.close(receive)
        os.close(send)
