"""Which files are pictures, and where they may lie; imports nothing heavy, since the workflow is
parsed with it.
"""

from __future__ import annotations

import os
import re

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
"""Decoders of Pillow that may open a file; some of the others start programs."""

_STORES = re.compile(
    r"/(?:\.dvc/cache/.+|files/md5/[0-9a-f]{2}/[0-9a-f]{30}|\.git/annex/objects/.+"
    r"|blobs/[0-9a-f]{40}(?:[0-9a-f]{24})?)"
)
"""Files that DVC, git-annex and the Hugging Face cache keep under their hashes and link to."""


def is_picture(name: str) -> bool:
    """Whether a file name is a picture's: hidden files, license.txt and the like are not."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def escapes(path: str | os.PathLike[str], home: str) -> str:
    """Where a file really lies when that is outside of the resolved folder `home`, else empty.

    A link to a store in which files are kept under their hashes is how that store works.
    """
    target = os.path.realpath(path)
    inside = os.path.commonpath([target, home]) == home
    return "" if inside or _STORES.search(target) else target
