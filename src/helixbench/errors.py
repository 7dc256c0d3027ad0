"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Bad input or configuration: one line naming the file or key, what is wrong and what to do.

    The command line prints it without a traceback and exits with code 2.
    """
