"""Where a run comes from: commit, versions, device, time, and the overrides that ask for it."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from wtacrs_experiments.config import RunConfig, as_record, compose
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.label import label_of
from wtacrs_experiments.records.record import DEFAULTS, NOT_HASHED, RunRecord
from wtacrs_experiments.words import MISSING, duration

GROUPS = ("task", "model", "tuning", "estimator", "memory", "training", "measure")


def origin(name: str, record: RunRecord) -> dict[str, str]:
    """What a page says of a run, as text."""
    of, config = record.provenance, record.config
    packages = of.get("packages")
    versions = packages if isinstance(packages, dict) else {}
    dirty = {True: ", with changes of no commit", False: "", None: ", not checked for changes"}
    seconds = of.get("seconds")
    device = " · ".join(dict.fromkeys(str(of.get(key)) for key in ("device_name", "cpu")))
    return {
        "name": name,
        "status": record.status.replace("_", " "),
        "seed": str(config["seed"]),
        "commit": f"{of.get('git_commit') or 'unknown'}{dirty.get(of.get('git_dirty'), '')}",
        "device": f"{device}, {of.get('threads')} threads",
        "versions": ", ".join(
            [f"python {of.get('python')}", *(f"{key} {value}" for key, value in versions.items())]
        ),
        "started": str(of.get("started_at") or MISSING),
        "took": duration(seconds) if isinstance(seconds, (int, float)) else MISSING,
        "overrides": " ".join(overrides(config)),
    }


def overrides(config: dict[str, Any]) -> list[str]:
    """What ``run.py`` is given to make this config: its choices, then all that they do not say.

    Paths and display are left out; so is all but the choices where one is not of ``conf/``.
    """
    choices = [*label_of(config).split(), *_measured(config.get("measure", {}))]
    named = [*choices, f"seed={config['seed']}"]
    usual = _usual(tuple(choices))
    if usual is None:
        return named
    changed = []
    for group in GROUPS:
        section = config.get(group)
        if not isinstance(section, dict):
            continue
        for key, value in (DEFAULTS.get(group, {}) | section).items():
            value = _as_now(key, value, config)
            plain = usual[group].get(key, value)  # a key that is no more says nothing
            skipped = key in NOT_HASHED.get(group, ()) or _is_first(key, value, plain)
            if value != plain and not skipped:
                changed.append(f"{group}.{key}={_written(value)}")
    return [*named, *changed]


def _measured(measure: dict[str, Any]) -> list[str]:
    """The choice of the group ``measure``, where it is not the default."""
    if measure.get("alone"):
        return ["measure=memory"]
    return ["measure=variance"] if measure.get("probe_steps") else []


def _as_now(key: str, value: Any, config: dict[str, Any]) -> Any:
    """A value in today's words: records without a mode call autocast bf16."""
    old = key == "precision" and value == "bf16" and "mode" not in config
    return "bf16-autocast" if old else value


def _is_first(key: str, value: Any, plain: Any) -> bool:
    """Whether it is memory.lossless of a preset from when that had fewer kinds."""
    return key == "lossless" and value != [] and plain[: len(value)] == value


@cache
def _usual(choices: tuple[str, ...]) -> dict[str, Any] | None:
    try:
        return as_record(compose(RunConfig, choices))
    except UserError:
        return None


def _written(value: Any) -> str:
    """A value as Hydra reads it."""
    if isinstance(value, str) and re.fullmatch(r"[\w./~@+-]+", value):
        return value
    return json.dumps(value, ensure_ascii=False)


def failure(record: RunRecord) -> str:
    """Why a run did not complete: the type of the error and its message."""
    error = record.error
    if not isinstance(error, dict):
        return str(error) if error else MISSING
    return f"{error.get('type')}: {error.get('message')}"
