"""Errors that a user can mend: shown as one message, without a traceback."""


class UserError(ValueError):
    """Bad input. The message names the value, the rule and the remedy."""
