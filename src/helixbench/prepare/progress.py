"""Status lines of what goes through a category's pictures."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

log = logging.getLogger(__name__)

EVERY_S = 5.0
"""Seconds between lines: a category that takes less has its last line only."""


class Progress:
    """Logs `<name>: 120 of 292 pictures` now and then; categories that run at once are told apart
    by their names.
    """

    def __init__(self, name: str, total: int, every_s: float = EVERY_S):
        self.name, self.total, self.every_s = name, total, every_s
        self.count, self.start = 0, time.monotonic()
        self.last = self.start

    def step(self) -> None:
        """One more picture is through."""
        self.count += 1
        if time.monotonic() - self.last >= self.every_s and self.count < self.total:
            self.last = time.monotonic()
            log.info("%s: %d of %d pictures", self.name, self.count, self.total)

    def done(self, odd: Sequence[str] = ()) -> None:
        """The last line, with what should be seen although it is no problem."""
        for line in odd:
            log.info("%s: %s", self.name, line)
        log.info("%s: %d pictures in %.1f s", self.name, self.total, time.monotonic() - self.start)
