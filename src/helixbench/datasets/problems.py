"""What reading a raw folder has to say besides its pictures: problems, which stop it or are
collected, and odd things.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from helixbench.errors import UserError


@dataclass
class Problems:
    """Lines about raw data. Without `collect` the first problem is a UserError; with it, problems
    are listed.

    Odd things are accepted but should be seen: files that are not read, pictures that are left out.
    """

    collect: bool = False
    lines: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        """Something that must be repaired: file, what is wrong, what to do."""
        if not self.collect:
            raise UserError(line)
        self.lines.append(line)

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Take a UserError of the block as a problem."""
        try:
            yield
        except UserError as error:
            if not self.collect:
                raise
            self.lines.append(str(error))
