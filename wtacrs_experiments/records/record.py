"""A run's record: one JSON file that stands alone (ARCHITECTURE section 7).

Units are in the key. What is unknown is null. A failure is a record too.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from wtacrs_experiments.config.known import LOSSLESS, TEXT_TO_TEXT
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.shape import check_shape, parse
from wtacrs_experiments.records.store import write_json

STATUSES = ("completed", "failed", "out_of_memory", "interrupted")
# Where things lie and how they are shown does not change what is computed.
NOT_HASHED = {
    "": ("results_dir", "overwrite", "logging", "plugins", "mode"),  # measure.alone says the mode
    "task": ("data_dir", "train_file", "eval_file"),  # of files the sum of their rows counts
    "training": ("progress", "checkpoint_steps", "checkpoint_minutes", "save_model"),
    "memory": ("name", "sample_linears"),  # the other keys and the estimator say it all
}
# What came later than the first records is left out while it has its default, so that these keep
# their names.
DEFAULTS: dict[str, dict[str, Any]] = {
    "training": {"group_by_length": False},
    "estimator": {"center": "none", "rank": 1},
    "memory": {
        **{"lossless": [], "gelu": "exact", "attention": "default", "recompute": "none"},
        "attention_output": "auto",
    },
}
# The data of records that do not say theirs: GLUE's CoLA, MRPC, RTE, SST-2, STS-B and WNLI.
FIRST_DATA = (
    *("7cbd8efa5a2443d6", "7083b7cbbe54e0cc", "023cac40a6d1c326"),
    *("9d704b903d090f71", "100b3faf959405d2", "ac594a1f5fc3ab9c"),
)
FIRST_MODEL = "363600669dcd93b0"  # of make models, as the first records had it without a sum
FIRST_KINDS = ("norm", "dropout", "relu")  # memory.lossless of lean, leanest and paper, at first,
PLANNED_KINDS = (*FIRST_KINDS, "gate")  # and of the first plans


class RecordError(UserError):
    """A record that cannot be read or a folder that cannot be written."""


@dataclass
class RunRecord:
    """What is known of a run. Sections are None until they are measured."""

    status: str  # one of STATUSES
    config: dict[str, Any]
    error: dict[str, str] | None = None  # type, message
    metrics: dict[str, Any] | None = None
    memory: dict[str, Any] | None = None
    throughput: dict[str, Any] | None = None
    sampling: dict[str, Any] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    # Only in the file when they were measured:
    variance: dict[str, Any] | None = None
    attribution: dict[str, Any] | None = None


def config_hash(
    config: dict[str, Any], without: tuple[str, ...] = (), only: tuple[str, ...] | None = None
) -> str:
    """Eight hex digits over the resolved config, or some of its sections; paths and display left
    out."""
    kept = {key: dict(v) if isinstance(v, dict) else v for key, v in config.items()}
    for section, keys in NOT_HASHED.items():
        target = kept if section == "" else kept.get(section, {})
        for key in keys:
            target.pop(key, None)
    for section, defaults in DEFAULTS.items():
        target = kept.get(section, {})
        for key, default in defaults.items():
            if target.get(key) == default:
                target.pop(key, None)
        if not target:
            kept.pop(section, None)
    for key in without:
        kept.pop(key, None)
    training = config.get("training", {})
    _as_before(kept, "mode" in config, bool(training) and "checkpoint_minutes" not in training)
    if "files_sha256" in (model := kept.get("model", {})):  # they count, not where they lie
        for key in ("path", "architecture"):
            model.pop(key, None)
    if only is not None:
        kept = {key: kept[key] for key in only if key in kept}
    text = json.dumps(kept, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def without_hub_sum(config: dict[str, Any]) -> dict[str, Any]:
    """``config`` without the sum of rows that the hub had: only the run itself asks for it."""
    task = config["task"]
    if task.get("source") != "glue" or task.get("data_dir") is not None:
        return config
    return config | {"task": {key: task[key] for key in task if key != "data_sha256"}}


def _as_before(kept: dict[str, Any], by_mode: bool, before_loss: bool) -> None:
    """Write what has another name or another place now as the first records had it, in place.

    Args:
        before_loss: whether it is a run's of before the presets had the kind "loss".
    """
    if kept.get("task", {}).get("data_sha256") in FIRST_DATA:
        del kept["task"]["data_sha256"]
    model = kept.get("model", {})
    if model.get("files_sha256") == FIRST_MODEL:
        del model["files_sha256"]
    training = kept.get("training", {})
    if by_mode and "precision" in training:
        # Records without a mode come from when a run's bf16 was autocast; theirs is that hash.
        renamed = {"bf16-autocast": "bf16", "bf16": "bf16 throughout"}
        training["precision"] = renamed.get(training["precision"], training["precision"])
    memory = kept.get("memory", {})
    if "lossless" in memory:
        # The presets have kinds more since; the models of those records have none of these.
        kinds, first = tuple(memory["lossless"]), FIRST_KINDS if by_mode else PLANNED_KINDS
        if kinds == LOSSLESS or (before_loss and kinds == PLANNED_KINDS):
            memory["lossless"] = [*first]
        elif kinds == LOSSLESS[: len(kinds)] and len(kinds) >= len(first):
            memory["lossless"] = [*kinds, "alone"]
    architecture = model.get("architecture") or {}
    if architecture.get("model_type") not in TEXT_TO_TEXT:  # what no other model reads or writes
        kept.get("task", {}).pop("text_to_text", None)  # a copy's: see config_hash


def record_path(config: dict[str, Any]) -> Path:
    """The file of a run: its name says what it is, the hash tells apart what the name does not."""
    names = [config[group]["name"] for group in ("task", "model", "tuning", "estimator")]
    if (memory := config.get("memory", {}).get("name", "plain")) not in ("plain", "linear"):
        names.append(memory)
    stem = "-".join([*names, f"b{config['budget']:g}", f"s{config['seed']}", config_hash(config)])
    return Path(config["results_dir"]) / f"{stem}.json"


def read_record(path: Path) -> RunRecord:
    """Read a record.

    Raises:
        RecordError: not a valid record; the file is left as it is.
    """
    try:
        # What is not finite is not known.
        content = parse(path.read_text(encoding="utf-8"), constant=lambda _: None)
        check_run({"provenance": {}} | content)
        return RunRecord(**content)
    except (OSError, ValueError, TypeError) as error:
        raise RecordError(
            f"{path} is not a valid record ({error}); it is left alone. Look at it, then delete "
            "it or run again with overwrite=true"
        ) from error


def check_run(content: Any) -> None:
    """Raise ValueError, which says why, unless this is the content of a run's record."""
    check_shape(content)
    if content.get("status") not in STATUSES:
        raise ValueError(f"status {content.get('status')!r} is none of {', '.join(STATUSES)}")
    if unknown := content.keys() - {one.name for one in fields(RunRecord)}:
        raise ValueError(f"{', '.join(sorted(unknown))} is no part of it")


def write_record(record: RunRecord, path: Path) -> None:
    """Write atomically, as ``wtacrs_experiments.records.store`` does."""
    content = asdict(record)
    for name in ("variance", "attribution"):
        if content[name] is None:
            del content[name]
    write_json(content, path)


def check_writable(folder: Path) -> None:
    """Make the results folder and try it, before any work.

    Raises:
        RecordError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RecordError(
            f"results_dir={folder} cannot be written ({error.strerror}); "
            "choose another folder: results_dir=..."
        ) from error
