"""The keys of the view in the terminal, and what the help says about them."""

from __future__ import annotations

from textual.binding import Binding, BindingType

VIEWS = (
    ("space", "1 Space"), ("walk", "2 Walk"), ("memory", "3 Memory"), ("shadow", "4 Shadow"), ("events", "5 Events"),
    ("compare", "6 Compare"),
)  # fmt: skip
"""The name of each view, and what its tab says."""
BINDINGS: list[BindingType] = [
    *(Binding(str(number), f"view('{name}')", show=False) for number, (name, _label) in enumerate(VIEWS, 1)),
    Binding("left,comma", "step(-1)"), Binding("right,full_stop", "step(1)"),
    Binding("left_square_bracket", "step_call(-1)"), Binding("right_square_bracket", "step_call(1)"),
    Binding("home", "begin"), Binding("end", "now"), Binding("space", "play"),
    Binding("plus,equals_sign", "speed(1)"), Binding("minus", "speed(-1)"),
    Binding("up", "page(-1)"), Binding("down", "page(1)"), Binding("n", "mapping(1)"), Binding("N", "mapping(-1)"),
    Binding("p", "process(1)"), Binding("P", "process(-1)"), Binding("g", "go"), Binding("slash", "search"),
    Binding("m", "mark"), Binding("c", "compare"), Binding("h", "half_blocks"),
    Binding("question_mark", "help"), Binding("q", "quit"),
    Binding("ctrl+c", "quit", priority=True), Binding("pagedown", "scroll(1)"), Binding("pageup", "scroll(-1)"),
]  # fmt: skip
HELP = """The machine, full screen.

  1 … 6           the views: address space, walk of an address, physical
                  memory, shadow page table, events, comparison
  p, P            next process, process before
  ← →             one event back, on          (also , and .)
  [ ]             one call or fault back, on
  Home, End       the beginning; what happens now
  Space, + -      play or pause; faster, slower
  ↑ ↓             the page before, the next page of the address
  n, N            the next mapping, the mapping before
  g               go to an address, or to the name of a mapping
  /               search: an address (when did its entry change?),
                  or `frame 0x45` (when did it change hands?)
  h               large mappings by letters, or by half blocks
  m, c            set a mark; compare the mark with this moment
  PgUp, PgDn      scroll
  ?, Esc          this help; close it
  q               quit
"""
