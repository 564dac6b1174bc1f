"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake that a user can correct.

    Its text is one line that names the thing, the value and the remedy. The command line prints it
    without a traceback and exits with code 2.
    """
