"""Names on pictures: with fonts that have their letters, and never taken for mathematics."""

from __future__ import annotations

from functools import cache

import matplotlib
from matplotlib import font_manager

_MORE = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "Noto Sans Arabic",
    "Noto Sans Hebrew",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Arial Unicode MS",
    "Unifont",
)
"""Families that are asked, in this order, for what DejaVu Sans has not."""


@cache
def fonts() -> dict[str, str]:
    """The families that are installed, in the order in which they are asked, and their files."""
    there = {entry.name for entry in font_manager.fontManager.ttflist}
    names = ["DejaVu Sans", *(name for name in _MORE if name in there)]
    return {name: font_manager.findfont(name) for name in names}


@cache
def _font_of(character: str) -> str | None:
    """The first file that has a character."""
    code = ord(character)
    known = (file for file in fonts().values())
    return next((f for f in known if font_manager.get_font(f).get_char_index(code)), None)


def legible(text: str) -> str:
    """The text with code points, such as <88c2>, for characters that no font here has."""
    return "".join(c if c in " \n" or _font_of(c) else f"<{ord(c):04x}>" for c in text)


def font_for(text: str) -> str:
    """File of the font that a line of text needs: the first that has its rarest character."""
    needed = [file for c in text if c not in " \n" and (file := _font_of(c))]
    return max(needed, key=list(fonts().values()).index, default=fonts()["DejaVu Sans"])


def figure_text(text: str) -> str:
    """A name for a matplotlib figure, whose texts are drawn in `fonts` from now on: legible, and a
    dollar is a dollar.
    """
    matplotlib.rcParams["font.family"] = list(fonts())
    return legible(text).replace("$", r"\$")
