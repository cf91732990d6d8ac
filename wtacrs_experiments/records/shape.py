"""What a record must be for reports to read it: types of what is there, and names that are names.

A file of results may have been edited, cut off, or written by something else. It is refused here,
in one line, and nothing behind has to ask again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

from wtacrs_experiments.config.rules import NAME

Rule = tuple[str, Callable[[Any], bool]]  # what it must be, in words, and whether it is


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1e300 and math.isfinite(value)  # the former for integers, of any size


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


NAMED: Rule = (
    "a name",
    lambda value: isinstance(value, str) and re.fullmatch(NAME, value) is not None,
)
TEXT: Rule = ("text", lambda value: isinstance(value, str))
TEXTS: Rule = ("a list of texts", _texts)
NUMBER: Rule = ("a number", _is_number)
COUNT: Rule = ("an integer", lambda value: isinstance(value, int) and _is_number(value))
LIST: Rule = ("a list", lambda value: isinstance(value, list))
MAP: Rule = ("a mapping", lambda value: isinstance(value, dict))

_GROUPS = ("task", "model", "tuning", "estimator")
_NEEDED: dict[str, Rule] = {
    **{f"config.{group}": MAP for group in _GROUPS},
    **{f"config.{group}.name": NAMED for group in _GROUPS},
    **{"config.budget": NUMBER, "config.seed": COUNT, "provenance": MAP},
}
_MISSING = object()
# What may be missing.
_RULES: dict[str, Rule] = {
    **{f"config.{group}": MAP for group in ("memory", "training", "measure", "logging")},
    **{"config.memory.name": NAMED, "config.memory.lossless": TEXTS},
    **{"config.training.precision": TEXT, "config.model.architecture": MAP},
    **{f"config.estimator.{key}": TEXT for key in ("center", "grad_norms")},
    **{"config.task.metrics": TEXTS, "config.task.train_file": TEXT, "config.task.source": TEXT},
    "config.task.data_sha256": TEXT,
    "config.model.files_sha256": TEXT,
    **{"error": MAP, "error.type": TEXT, "error.message": TEXT},
    **{"metrics": MAP, "metrics.main": NAMED, "metrics.held_out": MAP},
    **{f"metrics.{key}": NUMBER for key in ("best", "best_epoch", "last", "train_loss")},
    **{"metrics.held_out.score": NUMBER, "metrics.per_epoch": LIST, "metrics.loss_curve": MAP},
    **{"memory": MAP, "memory.device": TEXT, "memory.at_peak": MAP},
    **{f"memory.{key}_bytes": NUMBER for key in ("peak", "saved", "host_cache")},
    **{"throughput": MAP, "throughput.samples_per_second": NUMBER},
    **{"throughput.step_seconds": MAP, "throughput.step_seconds.median": NUMBER},
    **{"sampling": MAP, "variance": MAP, "attribution": MAP},
    **{"provenance.git_commit": TEXT, "provenance.seconds": NUMBER, "provenance.packages": MAP},
}
_SIZE: Rule = ("a number above 0", lambda value: _is_number(value) and value > 0)
_BYTES: Rule = ("numbers by name", lambda value: _numbers(value) and len(value) > 0)
_STEP: dict[str, Rule] = {
    **{"config.tuning.name": TEXT, "config.budget": NUMBER, "provenance": MAP, "flops": _SIZE},
    **{"memory.peak_bytes": _SIZE, "memory.saved_bytes": NUMBER, "memory.at_peak": _BYTES},
}
_BATCHES = {"peak_bytes_by_batch": _BYTES, "largest_batch": _BYTES}


def _numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(one is None or _is_number(one) for one in value.values())


def refuse(constant: str) -> None:
    """Raise ValueError for what JSON has not: NaN, Infinity."""
    raise ValueError(f"{constant} is none of JSON's numbers")


def parse(text: str, constant: Callable[[str], Any] = refuse) -> Any:
    """The content of a file of JSON; ``constant`` says what NaN and Infinity are.

    Raises:
        ValueError: it is none; or its text is none, as half of a pair of code units.
    """
    try:
        content = json.loads(text, parse_constant=constant)
        if "\\ud" in text.lower():
            json.dumps(content, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    return content


def check_config(config: Any) -> None:
    """Raise ValueError, which says why, unless this is the config of a run."""
    _check({"config": config}, "config")


def check_shape(content: Any) -> None:
    """Raise ValueError, which says why, unless this is the content of a record."""
    if not isinstance(content, dict):
        raise ValueError("it is no mapping")
    _check(content)


def check_plan(content: Any) -> None:
    """Raise ValueError, which says why, unless this is the content of a plan."""
    batches = isinstance(content, dict) and "peak_bytes_by_batch" in content
    for key, (what, holds) in (_BATCHES if batches else _STEP).items():
        if not holds(value := _at(content, key)):
            raise ValueError(f"{key} is {_shown(value)}, and must be {what}")
    if batches:
        peaks, largest = content["peak_bytes_by_batch"], content["largest_batch"]
        if not all(key.isdigit() and peaks[key] for key in peaks):
            raise ValueError("peak_bytes_by_batch must be a peak for each batch size")
        if not {str(size) for size in largest.values() if size} <= peaks.keys():
            raise ValueError("largest_batch must be sizes of peak_bytes_by_batch")


def _check(content: dict[str, Any], below: str = "") -> None:
    if not isinstance(content.get("config"), dict):
        raise ValueError("its config is none of a run")
    for rules, needed in ((_NEEDED, True), (_RULES, False)):
        for key, (what, holds) in rules.items():
            value = _at(content, key)
            # A config leaves out what does not count; what is not known of a run is null.
            unsaid = value is _MISSING or (value is None and not key.startswith("config."))
            if key.startswith(below) and (needed or not unsaid) and not holds(value):
                raise ValueError(f"{key} is {_shown(value)}, and must be {what}")


def _at(content: Any, key: str) -> Any:
    for part in key.split("."):
        content = content.get(part, _MISSING) if isinstance(content, dict) else _MISSING
    return content


def _shown(value: Any) -> str:
    text = "missing" if value is _MISSING else ascii(value)
    return text if len(text) < 40 else f"{text[:40]}..."
