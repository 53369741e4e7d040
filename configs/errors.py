"""The one error a user is meant to read."""


class UserError(Exception):
    """Something the user can mend. The message names the file or key and the next action.

    Entry points print it as one line and exit with code 2.
    """
