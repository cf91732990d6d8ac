"""Errors that a user can mend, and how a command ends: in one line, without a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

Given = ParamSpec("Given")


class UserError(ValueError):
    """Bad input. The message names the value, the rule and the remedy."""


class NoRecordError(UserError):
    """There is no record yet of what is to be shown."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its class where it says nothing."""
    return [*str(error).splitlines(), type(error).__name__][0]


def one_line(
    failed: int = 1, interrupted: str = "interrupted"
) -> Callable[[Callable[Given, int]], Callable[Given, int]]:
    """Have a command's ``main`` tell what ends it in one line.

    Args:
        failed: the exit status after bad input, or what the system refuses: a full disk, say.
        interrupted: what is said after Ctrl+C, beside the exit status 130.
    """

    def decorate(main: Callable[Given, int]) -> Callable[Given, int]:
        @wraps(main)
        def command(*args: Given.args, **kwargs: Given.kwargs) -> int:
            try:
                return main(*args, **kwargs)
            except (UserError, OSError) as error:
                print(f"error: {error}", file=sys.stderr)
                return failed
            except KeyboardInterrupt:
                print(interrupted, file=sys.stderr)
                return 130

        return command

    return decorate
