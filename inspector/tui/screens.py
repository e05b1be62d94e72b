"""The small screens in front of the view: the keys, and a line that is asked for; and how the pictures look."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from inspector.tui.drawing import Line
from inspector.tui.keys import HELP

# The colours of the page (shared/page/view.css). tests/web/test_palette.py looks at both as the colour-blind do.
_LOOKS = {
    "quiet": "dim", "address": "bold", "rights": "cyan", "name": "green", "chosen": "bold reverse",
    "page-allocated": "white on #51585b", "page-zero": "black on #fff35b", "page-anon": "black on #34b4ef",
    "page-file": "black on #6addb0", "page-shared": "black on #f9b236", "page-cow": "black on #d88ebc",
    "page-swapped": "black on #b69f83", "page-huge": "black on #248ed7",
    "use-free": "dim", "use-pcp": "dim", "use-reserved": "dim", "use-zero": "black on #fff35b",
    "use-table": "black on #db8862", "use-file": "black on #6addb0", "use-shmem": "black on #f9b236",
    "use-anon": "black on #34b4ef", "use-swap_cache": "black on #b69f83", "use-other": "black on #cab1e0",
}  # fmt: skip


def as_text(lines: Iterable[Line]) -> Text:
    """Return lines as Rich has them."""
    text = Text()
    for number, line in enumerate(lines):
        if number:
            text.append("\n")
        for piece, look in line:
            text.append(piece, style=style_of(look))
    return text


def style_of(look: str) -> str:
    """Return the style of a look; `half-UPPER-LOWER` has the colours of two kinds of pages."""
    if not look.startswith("half-"):
        return _LOOKS.get(look, "")
    upper, lower = (
        _LOOKS[f"page-{name}"].rpartition(" on ")[2] if name != "none" else "" for name in look.split("-")[1:]
    )
    return f"{upper} on {lower}" if lower else upper


class Help(ModalScreen[None]):
    """The keys."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,question_mark,q", "dismiss", "Close")]
    CSS = "Help { align: center middle; } #help { width: 74; height: auto; border: round $accent; padding: 0 1; }"

    def compose(self) -> ComposeResult:
        """Show the keys."""
        yield Static(Text(HELP), id="help")

    async def action_dismiss(self, result: None = None) -> None:
        """Close the help."""
        self.dismiss(result)


class Ask(ModalScreen[str]):
    """One line that the user types."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Close")]
    CSS = "Ask { align: center bottom; } Ask Input { width: 100%; }"

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        """Show the line."""
        yield Input(placeholder=self._question)

    def on_input_submitted(self, said: Input.Submitted) -> None:
        """Hand on what was typed."""
        self.dismiss(said.value.strip())

    def action_leave(self) -> None:
        """Hand on nothing."""
        self.dismiss("")
