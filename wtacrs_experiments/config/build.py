"""From nested dictionaries to the dataclasses and back, with no value bent on the way.

OmegaConf's own typed nodes would take "no", 2 or 'off' for a boolean and 1.9 for an integer. So the
tree that Hydra composes is plain, with the keys and defaults of the dataclasses, and is checked
here, wherever it came from: the command line, a YAML file, a record.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, field, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from wtacrs_experiments.config.rules import nearest, shown, wrong
from wtacrs_experiments.errors import UserError

T = TypeVar("T")
GIVE_IT = "???"  # OmegaConf's mark of what has no default


def left_out(default: Any = None) -> Any:
    """A field that a record leaves out while it has its default.

    Which is so for what not every choice of a group has, and for what came later than the first
    records: their names hash the keys they had.
    """
    return field(default=default, metadata={"left_out": True})


def counted(default: Any = None, **metadata: bool) -> Any:
    """A number that a record has as an integer where it is one: 3 and 3.0 are one run."""
    return field(default=default, metadata={"counted": True, **metadata})


@cache
def hints_of(cls: type[Any]) -> dict[str, Any]:
    """Field -> type."""
    return get_type_hints(cls)


def dataclass_in(hint: Any) -> type | None:
    """The dataclass that a key of this type holds, if any."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return next((one for one in options if is_dataclass(one) and isinstance(one, type)), None)


def defaults(cls: type) -> dict[str, Any]:
    """The keys of a dataclass with their defaults, as Hydra begins with them."""
    return {one.name: _default(one, hints_of(cls)[one.name]) for one in fields(cast(Any, cls))}


def _default(one: Field[Any], hint: Any) -> Any:
    if one.default is not MISSING:
        return _plain(one.default)
    if (inner := dataclass_in(hint)) is not None:
        return defaults(inner)
    return GIVE_IT if one.default_factory is MISSING else _plain(one.default_factory())


def build(cls: type[T], content: Mapping[str, Any], key: str = "") -> T:
    """The dataclass that ``content`` describes; ``key`` is where it stands.

    Raises:
        UserError: a key that is unknown or missing, a wrong type, or a value outside its rule.
    """
    hints, values = hints_of(cast(Any, cls)), dict[str, Any]()
    for name, value in content.items():
        full = f"{key}.{name}" if key else str(name)
        if name not in hints:
            raise UserError(f"{full} is no key of {cls.__name__}{nearest(str(name), hints)}")
        values[name] = _typed(hints[name], value, full)
    for one in fields(cast(Any, cls)):
        if one.name not in values and one.default is one.default_factory is MISSING:
            raise UserError(f"{key and key + '.'}{one.name} must be given")
    return cls(**values)


WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "text"}


def _typed(hint: Any, value: Any, key: str) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        options = get_args(hint)
        if value is None and type(None) in options:
            return None
        # Of several types the one of the same shape: {..} for a mapping, else the plain one.
        given = [one for one in options if one is not type(None)]
        mappings = [one for one in given if get_origin(one) is dict]
        hint = mappings[0] if mappings and isinstance(value, Mapping) else given[0]
    if isinstance(value, str) and value == GIVE_IT:
        raise UserError(f"{key} must be given")
    if (inner := dataclass_in(hint)) is not None:
        if not isinstance(value, Mapping):
            raise wrong(key, value, "must be a mapping, {key: value}")
        return build(inner, value, key)
    if hint is Any:
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            quoted = f", say [{value}]" if isinstance(value, str) and value else ""
            raise wrong(key, value, f"must be a list{quoted}")
        return tuple(_typed(get_args(hint)[0], one, f"{key}[{i}]") for i, one in enumerate(value))
    if get_origin(hint) is dict:
        if not isinstance(value, Mapping):
            raise wrong(key, value, "must be a mapping, {key: value}")
        of = get_args(hint)[1]
        return {_typed(str, k, key): _typed(of, v, f"{key}.{k}") for k, v in value.items()}
    return _scalar(hint, value, key)


def _scalar(hint: type, value: Any, key: str) -> Any:
    fits = type(value) is hint or (hint is float and type(value) is int)
    if not fits:
        say = f"; quote it: {key}='\"{shown(value)}\"'" if hint is str and value is not None else ""
        raise wrong(key, value, f"must be {WORDS[hint]}{say}")
    if hint is not float:
        return value
    if not math.isfinite(value):
        raise wrong(key, value, "must be finite")
    return float(value)


def as_record(config: object) -> dict[str, Any]:
    """The config as a record has it: JSON's own types, all that counts, nothing that does not."""
    content = {}
    for one in fields(cast(Any, config)):
        value = getattr(config, one.name)
        if one.metadata.get("left_out") and value == one.default:
            continue
        if one.metadata.get("counted") and value is not None and float(value).is_integer():
            value = int(value)
        content[one.name] = _plain(value)
    return content


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return as_record(value)
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [*map(_plain, value)] if isinstance(value, (list, tuple)) else value
