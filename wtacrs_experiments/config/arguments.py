"""The arguments of a command, before Hydra composes: keys and choices that there are not."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, cast, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from wtacrs_experiments.config.build import dataclass_in, hints_of
from wtacrs_experiments.config.places import CONF
from wtacrs_experiments.config.rules import nearest, wrong
from wtacrs_experiments.errors import UserError, first_line

OF_RUNS = ("experiment", "launcher")  # groups that are no part of a run's config


def add_folders(parser: argparse.ArgumentParser) -> None:
    """``--config-dir``, as Hydra's own of ``run``; it may come more than once."""
    told = "a folder beside conf/, as run has it"
    parser.add_argument("-cd", "--config-dir", type=Path, action="append", default=[], help=told)


def check_arguments(
    root: type, texts: Sequence[str], *, sweeps: bool, folders: Sequence[Path] = ()
) -> list[str]:
    """Check group, choice and key of each argument; returns them as Hydra is to have them.

    Args:
        root: the dataclass of the command.
        texts: ``key=value``.
        sweeps: whether values with commas make a grid.
        folders: more folders with files of groups, beside ``conf/``.

    Raises:
        UserError: one that is wrong, with the nearest right one.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--config-dir: {folder} is no folder")
    return [_checked(root, one, sweeps, (CONF, *folders)) for one in parse(texts)]


def parse(texts: Sequence[str]) -> list[Override]:
    """Hydra's own reading of the arguments.

    Raises:
        UserError: one that is no ``key=value``.
    """
    parser, parsed = OverridesParser.create(), []
    for text in texts:
        try:
            parsed.append(parser.parse_override(text))
            reason = "" if parsed[-1].key_or_group else "it has no key"
        except HydraException as error:
            reason = first_line(error)
        if reason:
            raise UserError(f"{text!r} is no key=value that can be read: {reason}")
    return parsed


def grid(
    texts: Sequence[str], folders: Sequence[Path] = ()
) -> Iterator[tuple[list[str], list[str]]]:
    """The keys that vary, and the arguments of each point of the grid that ``texts`` span.

    Args:
        folders: more folders with files of groups, beside ``conf/``.
    """
    parsed = parse(texts)
    swept = [one.get_key_element() for one in parsed if one.is_sweep_override()]
    for point in itertools.product(*(_values(one, (CONF, *folders)) for one in parsed)):
        yield swept, [*point]


def _values(override: Override, folders: Sequence[Path]) -> list[str]:
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [override.input_line or ""]
    if isinstance(override.value(), Glob):
        chosen = cast(Glob, override.value()).filter(choices(override.key_or_group, folders))
        return [f"{key}={name}" for name in chosen]
    try:
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    except HydraException as error:
        raise UserError(f"{override.input_line}: {error}") from error


def _checked(root: type, one: Override, sweeps: bool, folders: Sequence[Path]) -> str:
    text, key = one.input_line or "", one.key_or_group
    if key.split("/")[0].split(".")[0] == "hydra":
        return text
    if one.package is not None:
        raise UserError(f"{text}: a group has one place, so leave '@{one.package}' out")
    if one.is_sweep_override() and not sweeps:
        raise UserError(f"{text} is a sweep; add -m, or quote a value that holds a comma")
    known = key in hints_of(root) or (key in OF_RUNS and "task" in hints_of(root))
    if known and (found := choices(key, folders)):
        _check_choice(one, text, found)
        return text
    hint, below = _check_key(root, key, text)
    if get_origin(hint) is dict and isinstance(one.value(), list):  # which Hydra cannot merge
        raise wrong(key, one.value(), "must be a mapping, {key: value}")
    if below:  # a key of a mapping is there or not; either way the value counts
        return text if one.is_delete() else "++" + text.lstrip("+")
    if one.is_delete():
        raise UserError(f"{text}: every key is needed; give it another value instead")
    if one.is_add():
        raise UserError(f"{text}: {key} is there already; leave the + out")
    if get_origin(hint) is dict and isinstance(one.value(), dict):  # it may bring new keys
        return "++" + text.lstrip("+")
    return text


def choices(group: str, folders: Sequence[Path]) -> list[str]:
    """The files of a group."""
    return sorted({file.stem for folder in folders for file in folder.glob(f"{group}/*.yaml")})


def _check_choice(one: Override, text: str, found: list[str]) -> None:
    group = one.key_or_group
    if one.is_delete():
        raise UserError(f"{text}: the group {group} is needed; choose {', '.join(found)}")
    if one.is_add() or one.is_force_add():
        raise UserError(f"{text}: {group} is there already; leave the + out")
    if isinstance(one.value(), Glob):
        return
    values = list(one.sweep_iterator()) if one.is_sweep_override() else [one.value()]
    for value in values:
        if value is None and group == "experiment":
            continue
        name = str(value).removesuffix(".yaml") if isinstance(value, str) else None
        if name not in found:
            raise UserError(
                f"there is no '{group}/{value}'; {group} is one of {', '.join(found)}"
                f"{nearest(str(value), found)}"
            )


def _check_key(root: type, key: str, text: str) -> tuple[Any, bool]:
    """The type of ``key``, and whether it may be absent: in a mapping, or in what may be null."""
    hint: Any = root
    optional = False
    for part in key.split("."):
        inner = dataclass_in(hint)
        if inner is None:
            if hint is Any or mapping_in(hint):
                return Any, True
            raise UserError(f"{text}: {key.rpartition('.')[0]} is one value and has no keys")
        if part not in hints_of(inner):
            raise UserError(f"{text}: there is no key {key}{_near_key(root, key)}")
        hint = hints_of(inner)[part]
        optional = optional or (dataclass_in(hint) is not None and "None" in str(hint))
    return mapping_in(hint) or hint, optional and "." in key


def mapping_in(hint: Any) -> Any:
    """The mapping that a key of this type holds, if any."""
    return next((one for one in (hint, *get_args(hint)) if get_origin(one) is dict), None)


def _near_key(root: type, key: str) -> str:
    known = all_keys(root)
    last = key.rpartition(".")[2]
    same = [one for one in known if one.rpartition(".")[2] == last]
    return f"; did you mean {same[0]}?" if same else nearest(key, known)


@cache
def all_keys(root: type) -> tuple[str, ...]:
    """Every dotted key of a dataclass."""
    found = []
    for one in fields(cast(Any, root)):
        inner = dataclass_in(hints_of(root)[one.name])
        found.append(one.name)
        found += [f"{one.name}.{key}" for key in all_keys(inner)] if inner else []
    return tuple(found)
