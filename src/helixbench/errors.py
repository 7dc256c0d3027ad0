"""The exceptions that a user is meant to read."""


class UserError(Exception):
    """Bad input or configuration: one line naming the file or key, what is wrong and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class UserErrors(UserError):
    """Several problems, a line each; the last line says how many are not shown."""

    SHOWN = 50

    def __init__(self, problems: list[str]):
        more = len(problems) - self.SHOWN
        self.lines = [*problems[: self.SHOWN - 1], f"{problems[self.SHOWN - 1]} (and {more} more)"] if more > 0 else list(problems)
        super().__init__("\n".join(self.lines))
