"""What tests of the referee share: a program is played, and both sides must agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerneld.referee.describe import describe_divergence
from kerneld.referee.match import Match
from kerneld.referee.program import Program, to_json

_REPLAYS = 3
REGRESSIONS = sorted(Path(__file__).with_name("programs").glob("*.json"))


def agree(match: Match, program: Program, *, small: bool = False) -> None:
    """Play a program, with kerneld's usual or its small sizes, and fail where both sides differ each time.

    kerneld does the same whenever a program is played. A difference that does not come each time is the host's: its
    processors' batches, a daemon that takes accessed bits, a neighbour that keeps the disk busy.
    """
    divergence = match.play(program, small=small)
    if divergence is not None and all(match.play(program, small=small) is not None for _ in range(_REPLAYS)):
        pytest.fail("\n".join([*describe_divergence(program, divergence), "", to_json(program)]), pytrace=False)
