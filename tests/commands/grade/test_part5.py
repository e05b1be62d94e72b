"""part5.txt: its form and its order; the words do not tell the answer."""

from __future__ import annotations

import pytest

from kerneld.commands.grade.cell.files import Text
from kerneld.commands.grade.cell.part5 import judge_part5
from kerneld.commands.grade.model import Finding, Outcome
from kerneld.commands.grade.traced_order import FUNCTIONS, trace_order

ORDER = ("exc_page_fault", "find_vma", "do_exit", "find_vma")
URL = "https://elixir.bootlin.com/linux/v6.8/source/kernel/sched/core.c#L1234"


def judge(text: str | None) -> dict[str, Finding]:
    found = judge_part5(Text("user/part5.txt", text), FUNCTIONS, ORDER, "")
    return {finding.row: finding for finding in found}


def outcomes(text: str | None) -> tuple[bool, bool]:
    found = judge(text)
    return tuple(found[row].outcome is Outcome.PASSED for row in ("part5_form", "part5_order"))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"1. {URL}\n\n" + "\n".join(ORDER) + "\n", (True, True)),
        (f"1. {URL}\n\n" + "\r\n".join(ORDER), (True, True)),
        ("The function find_vma looks for a VMA.\n" + "\n".join(ORDER), (True, True)),
        ("\n".join(reversed(ORDER)), (True, False)),
        ("\n".join(ORDER[:-1]), (True, False)),
        ("\n".join((*ORDER, "__schedule")), (True, False)),
        ("\n".join(f"- {name}" for name in ORDER), (False, False)),
        ("\n".join(f"{at}. {name}" for at, name in enumerate(ORDER)), (False, False)),
        ("\n".join(f"{name} " for name in ORDER), (False, False)),
        (f"1. {URL.replace('v6.8', 'v6.1')}\n" + "\n".join(ORDER), (False, True)),
        (f"1. {URL.partition('#')[0]}\n" + "\n".join(ORDER), (False, True)),
        ("", (False, False)),
        (None, (False, False)),
    ],
)
def test_form_and_order(text: str | None, wanted: tuple[bool, bool]) -> None:
    assert outcomes(text) == wanted


def test_the_words_name_the_first_difference_and_not_what_is_right() -> None:
    seen = judge("\n".join(("exc_page_fault", "do_exit", "find_vma")))["part5_order"].seen
    assert "after line 'exc_page_fault'" in seen
    assert "'find_vma'" not in seen


def test_an_order_that_could_not_be_traced_is_no_pass() -> None:
    found = judge_part5(Text("user/part5.txt", "find_vma\n"), FUNCTIONS, (), "no kernel")
    assert [finding.outcome for finding in found] == [Outcome.PASSED, Outcome.SKIPPED]


def test_the_order_is_traced() -> None:
    order = trace_order([*FUNCTIONS, "handle_mm_fault", "no_such_function"])
    assert order.why_not == ""
    assert (order.functions[0], order.functions[-1]) == ("exc_page_fault", "context_switch")
    # No VMA covers address 0: this fault is not settled.
    assert "handle_mm_fault" not in order.functions
    assert order.functions.index("get_signal") < order.functions.index("do_exit")
