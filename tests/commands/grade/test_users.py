"""Two gradings on one host do not get the same user: what one sweeps up is not the other's."""

from __future__ import annotations

import pytest

from kerneld.commands.grade.cell.isolation import Walls
from kerneld.commands.grade.grading import USERS, _own_user
from tests.support.rights import needs_another_user


@needs_another_user
def test_a_user_is_taken_until_it_is_given_back() -> None:
    with _own_user(Walls(user=True)) as first, _own_user(Walls(user=True)) as second:
        assert first != second
        assert {first, second} <= set(USERS)
    with _own_user(Walls(user=True)) as third:
        assert third is not None
        assert third in USERS


@pytest.mark.parametrize("walls", [Walls(), Walls(processes=True, files=True, network=True)])
def test_without_that_wall_there_is_no_other_user(walls: Walls) -> None:
    with _own_user(walls) as uid:
        assert uid is None
