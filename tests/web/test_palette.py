"""The colours as the colour-blind see them: any two of one picture stay apart, on the page and in the terminal.

The eyes are those of Machado, Oliveira and Fernandes, A Physiologically-based Model for Simulation of Color Vision
Deficiency (2009), at full severity, on linear sRGB. The difference is that of CIELAB (CIE 1976): 2.3 is just noticed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations

import pytest
from rich.style import Style

from inspector.tui.screens import _LOOKS
from shared.page.package import page_files

Colour = tuple[float, float, float]
Matrix = Sequence[Sequence[float]]

EYES: Mapping[str, Matrix] = {
    "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.3039)),
}
TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.072175), (0.0193339, 0.119192, 0.9503041))
WHITE = (0.95047, 1.0, 1.08883)
APART = 12.0
"""Five times what is just noticed. Cells of one kind lie side by side, and each also has a mark."""
READABLE, VISIBLE = 4.5, 3.0
"""WCAG 2.2: contrast of text (1.4.3) and of graphics (1.4.11)."""


def linear(text: str) -> Colour:
    text = text.lstrip("#")
    whole = "".join(letter * 2 for letter in text) if len(text) == 3 else text
    red, green, blue = (int(whole[at : at + 2], 16) / 255 for at in (0, 2, 4))
    return _linear(red), _linear(green), _linear(blue)


def _linear(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else float(((value + 0.055) / 1.055) ** 2.4)


def times(matrix: Matrix, colour: Colour) -> Colour:
    red, green, blue = (sum(a * b for a, b in zip(row, colour, strict=True)) for row in matrix)
    return red, green, blue


def lab(colour: Colour) -> Colour:
    inside = tuple(min(1.0, max(0.0, part)) for part in colour)
    x, y, z = (_cube(part / white) for part, white in zip(times(TO_XYZ, inside), WHITE, strict=True))  # type: ignore[arg-type]
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def _cube(value: float) -> float:
    return float(value ** (1 / 3)) if value > (6 / 29) ** 3 else value / (3 * (6 / 29) ** 2) + 4 / 29


def difference(one: str, other: str, eyes: Matrix) -> float:
    pairs = zip(lab(times(eyes, linear(one))), lab(times(eyes, linear(other))), strict=True)
    return float(sum((a - b) ** 2 for a, b in pairs) ** 0.5)


def contrast(one: str, other: str) -> float:
    light, dark = sorted((times(TO_XYZ, linear(text))[1] for text in (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def themes() -> dict[str, dict[str, str]]:
    """Return the variables of both themes. The dark one changes some of the light one's."""
    style = page_files()["view.css"].decode()
    roots = [part.partition("}")[0] for part in style.split(":root {")[1:3]]
    light, dark = (dict(re.findall(r"--([a-z][a-z-]*(?:\d+)?): (#[0-9a-f]{3,6})", root)) for root in roots)
    return {"light": light, "dark": {**light, **dark}}


def palette(theme: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in theme.items() if re.fullmatch(rf"{name}-\d+", key)}


@pytest.mark.parametrize("eyes", EYES)
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("name", "colours"), [("page", 9), ("frame", 10), ("table", 2), ("slot", 3), ("group", 6)])
def test_any_two_colours_of_a_picture_stay_apart(name: str, colours: int, theme: str, eyes: str) -> None:
    found = palette(themes()[theme], name)
    assert len(found) == colours
    close = {
        (one, other): round(apart, 1)
        for one, other in combinations(found, 2)
        if (apart := difference(found[one], found[other], EYES[eyes])) < APART
    }
    assert not close


@pytest.mark.parametrize("eyes", EYES)
@pytest.mark.parametrize("picture", ["page", "use"])
def test_so_do_those_of_the_terminal(picture: str, eyes: str) -> None:
    looks = {name: Style.parse(look).bgcolor for name, look in _LOOKS.items() if name.startswith(f"{picture}-")}
    found = {name: colour.get_truecolor().hex for name, colour in looks.items() if colour is not None}
    assert len(found) >= 7
    close = [
        (one, other)
        for one, other in combinations(found, 2)
        if difference(found[one], found[other], EYES[eyes]) < APART
    ]
    assert not close


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_mark_can_be_read_in_its_cell_and_a_line_seen_on_the_paper(theme: str) -> None:
    colours = themes()[theme]
    for name in ("page", "frame"):
        for key, colour in palette(colours, name).items():
            ink = colours.get(key.replace("-", "-ink-"), colours["cell-ink"])
            assert contrast(colour, ink) >= READABLE, key
    for key, colour in palette(colours, "group").items():
        assert contrast(colour, colours["paper"]) >= VISIBLE, key


def test_the_simulation_sees_what_is_known() -> None:
    """Red and green of equal lightness are one colour for a deuteranope, and black and white two for everybody."""
    assert difference("#c84b31", "#7d7a00", EYES["deuteranopia"]) < difference("#c84b31", "#7d7a00", EYES["normal"]) / 3
    assert all(difference("#000000", "#ffffff", eyes) > 90 for eyes in EYES.values())
    assert round(contrast("#000", "#fff")) == 21
