"""The rules that keys share. Each raises UserError: the key, its value, the rule, the remedy."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from operator import ge, gt, le
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from wtacrs_experiments.errors import UserError

NAME = r"[A-Za-z0-9][A-Za-z0-9._+-]*"


def shown(value: Any) -> str:
    """A value as a user would write it: null, true, 'text'."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(shown, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else repr(value)


def nearest(word: str, known: Iterable[str]) -> str:
    """The hint ``; did you mean ...?``, or nothing where no known word is near."""
    found = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {found[0]}?" if found else ""


def wrong(key: str, value: Any, rule: str) -> UserError:
    """The error that says so."""
    return UserError(f"{key}={shown(value)} {rule}")


def check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    """One of ``choices``."""
    choices = tuple(choices)
    if value not in choices:
        listed = " or ".join(choices) if len(choices) < 3 else ", ".join(choices)
        raise wrong(key, value, f"is unknown; choose {listed}{nearest(value, choices)}")


def check_range(
    key: str,
    value: float,
    least: float | None = None,
    *,
    above: float | None = None,
    most: float | None = None,
    remedy: str = "",
) -> None:
    """Within the bounds that are given."""
    bounds = ("above", above, gt), ("at least", least, ge), ("at most", most, le)
    given = [(word, bound, holds) for word, bound, holds in bounds if bound is not None]
    if not all(holds(value, bound) for _, bound, holds in given):
        rule = " and ".join(f"{word} {bound}" for word, bound, _ in given)
        raise wrong(key, value, f"must be {rule}{remedy and '; ' + remedy}")


def check_share(key: str, value: float) -> None:
    """In [0, 1)."""
    if not 0 <= value < 1:
        raise wrong(key, value, "is outside [0, 1)")


def check_budget(key: str, value: float) -> None:
    """In (0, 1]."""
    if not 0 < value <= 1:
        raise wrong(key, value, "is a share of the rows, in (0, 1]; 0.3 keeps 30 of 100")


def check_name(key: str, value: str) -> None:
    """What can stand in the name of a file."""
    if not re.fullmatch(NAME, value):
        raise wrong(
            key, value, "is no name: letters, digits and . _ + - alone, no folder, not '..'"
        )


def check_text(key: str, value: str | None) -> None:
    """Not empty."""
    if value is not None and not value.strip():
        raise wrong(key, value, "is empty")


def check_inside(key: str, value: str) -> None:
    """A path below the folder that it belongs to."""
    check_text(key, value)
    path = PurePosixPath(value)
    if path.is_absolute() or PureWindowsPath(value).is_absolute() or ".." in path.parts:
        raise wrong(key, value, "leads out of its folder; give a relative path without '..'")


def check_module(key: str, value: str) -> None:
    """A dotted name that could be imported."""
    if not all(part.isidentifier() for part in value.split(".")):
        raise wrong(key, value, "is no module; name one as in an import statement")


def check_distinct(key: str, values: Iterable[Any]) -> None:
    """Nothing twice."""
    values = list(values)
    if len(set(values)) < len(values):
        raise wrong(key, values, "names one thing twice")


def check_filled(key: str, values: Any) -> None:
    """At least one."""
    if not values:
        raise wrong(key, values, "is empty; give at least one")
