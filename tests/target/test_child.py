"""A forked child that carries out orders, with real processes."""

from __future__ import annotations

import os
import signal

from target.child import Child, describe_wait_status
from tests.support.descriptors import open_descriptors
from tests.target.fake_process import FakeProcess


def test_orders_are_carried_out_in_the_child() -> None:
    process = FakeProcess()
    with Child(process.as_process(), {"pid": lambda: str(os.getpid())}) as child:
        assert int(child.order("pid")) == child.pid != os.getpid()
        assert int(child.order("pid")) == child.pid
    assert child.wait() == 0


def test_a_signal_in_an_order_is_the_childs_wait_status() -> None:
    def die() -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        return "alive"

    with Child(FakeProcess().as_process(), {"die": die}) as child:
        assert child.order("die") == ""
        status = child.wait()
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert describe_wait_status(child.pid, status) == f"waitpid: process {child.pid} was killed by signal 9 (SIGKILL)."


def test_an_order_to_a_dead_child_has_no_answer() -> None:
    def leave() -> str:
        os._exit(7)

    with Child(FakeProcess().as_process(), {"leave": leave}) as child:
        assert child.order("leave") == ""
        assert child.order("leave") == ""
    assert describe_wait_status(child.pid, child.wait()) == f"waitpid: process {child.pid} exited with status 7."


def test_an_exception_in_the_child_never_runs_the_parents_code() -> None:
    parent = os.getpid()

    def fail() -> str:
        raise ValueError("no traceback of this may be seen")

    try:
        with Child(FakeProcess().as_process(), {"fail": fail}) as child:
            assert child.order("fail") == ""
        assert os.WEXITSTATUS(child.wait()) == 1
    finally:
        assert os.getpid() == parent


def test_no_descriptor_is_left_behind() -> None:
    process = FakeProcess()
    before = len(open_descriptors())
    with Child(process.as_process(), {}):
        pass
    assert len(open_descriptors()) == before
