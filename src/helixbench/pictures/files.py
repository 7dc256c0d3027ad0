"""Which files are pictures; imports nothing heavy, since the workflow is parsed with it."""

from __future__ import annotations

import os

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp"})


def is_picture(name: str) -> bool:
    """Whether a file name is a picture's: hidden files, license.txt and the like are not."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
