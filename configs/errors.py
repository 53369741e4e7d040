"""The one error a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: the message names the file or key and the next action. Entry points print it and exit with 2."""
