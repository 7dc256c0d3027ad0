"""The exceptions that a user is meant to read."""

from __future__ import annotations

import errno
import re

_STORAGE = {
    errno.ENOSPC: "no space left on the disk; make room and run again",
    errno.EDQUOT: "the disk quota is used up; make room and run again",
    errno.EROFS: "the file system is read-only; mount it for writing and run again",
    errno.EACCES: "permission denied; give the right to write there and run again",
    errno.EIO: "the disk gave an input/output error; check it and run again",
}


class UserError(Exception):
    """Bad input or configuration: one line naming the file or key, what is wrong and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class UserErrors(UserError):
    """Several problems, a line each; the last line says how many are not shown."""

    SHOWN = 50

    def __init__(self, problems: list[str]):
        more = len(problems) - self.SHOWN
        self.lines = (
            [*problems[: self.SHOWN - 1], f"{problems[self.SHOWN - 1]} (and {more} more)"]
            if more > 0
            else list(problems)
        )
        super().__init__("\n".join(self.lines))


def storage_line(error: BaseException | None) -> str | None:
    """What to say of a full, read-only or failing disk, wherever in the chain of causes it stands;
    None for any other error.

    Libraries that write through Rust name the number in their text only.
    """
    while error is not None:
        number = getattr(error, "errno", None)
        named = re.search(r"os error (\d+)", str(error))
        number = int(named[1]) if number is None and named else number
        if number in _STORAGE:
            file = getattr(error, "filename", None)
            return f"{file}: {_STORAGE[number]}" if file else _STORAGE[number]
        error = error.__cause__ or error.__context__
    return None
