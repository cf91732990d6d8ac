"""What a run reads beside its config: other data, other files of a local model and other code of a
plugin are another run.

The sums go into the config, and so into the name of the record. Rows of one's own and those of the
hub have theirs from ``wtacrs_experiments.run.own_task``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from wtacrs_experiments.config import ModelConfig, RunConfig, TaskConfig
from wtacrs_experiments.config.known import ESTIMATORS
from wtacrs_experiments.config.own_model import settled
from wtacrs_experiments.config.places import RUN_FILE, model_folder

DIGITS = 16
# Sizes, weights, tokenizers, templates of chats.
OF_MODELS = (".json", ".safetensors", ".bin", ".model", ".txt", ".bpe", ".jinja")
_sums: dict[tuple[str, ...], str] = {}  # of plugins, as this process found them
SETTLED_NS = 2 * 10**9  # a file that changed later may change again without a new time


def identified(config: RunConfig) -> RunConfig:
    """``config`` with what a model of one's own says itself, and the sums of its files if it is a
    local one, of those in ``task.data_dir``, and of the plugins that it uses.

    What is not there has no sum: the run itself says that it is missing.
    """
    task, estimator, measure = config.task, config.estimator, config.measure
    model = settled(config.model, task.source == "sft")
    model = replace(model, files_sha256=model_sum(model))
    if (found := data_sum(task)) is not None:
        task = replace(task, data_sha256=found)
    probed = [method.partition("/")[0] for method in measure.methods or ()]
    if {estimator.name, *probed} - {*ESTIMATORS}:
        code = code_sum(tuple(config.plugins))
        if estimator.name not in ESTIMATORS:
            estimator = replace(estimator, code_sha256=code)
        if {*probed} - {*ESTIMATORS}:
            measure = replace(measure, code_sha256=code)
    return replace(config, model=model, task=task, estimator=estimator, measure=measure)


def data_sum(task: TaskConfig) -> str | None:
    """The sum of the task's files in its folder; None without a folder, or a file of it."""
    if task.source != "glue" or task.data_dir is None:
        return None
    folder = Path(task.data_dir).expanduser() / (task.folder or "")
    try:
        return _joined(file_sum(folder / name) for name in (task.files or {}).values())
    except OSError:
        return None


def model_sum(model: ModelConfig) -> str | None:
    """The sum of the files of a model in a local folder, wherever it lies; None of any other.

    Raises:
        OSError: one cannot be read.
    """
    folder = model_folder(model.path)
    if model.source not in ("folder", "hub") or not folder.is_dir():
        return None
    named = (file for file in folder.iterdir() if file.suffix in OF_MODELS)
    files = sorted(file for file in named if file.is_file() and file.name != RUN_FILE)
    return _joined(part for file in files for part in (file.name, file_sum(file)))


def code_sum(modules: tuple[str, ...]) -> str | None:
    """The sum of the Python files of ``modules``, of a package all; None if one is not found.

    What they import from elsewhere does not count. Of modules that this process has imported it is
    the sum of before: an edit since does not run here.
    """
    if modules in _sums and all(module in sys.modules for module in modules):
        return _sums[modules]
    sums: list[str] = []
    for module in modules:
        try:
            spec = importlib.util.find_spec(module)
        except Exception:  # whatever a parent package does; the run itself says what
            spec = None
        if spec is None or spec.origin is None:
            return None
        origin = Path(spec.origin)
        package = spec.submodule_search_locations is not None
        for file in sorted(origin.parent.rglob("*.py")) if package else [origin]:
            sums += [file.relative_to(origin.parent).as_posix(), file_sum(file)]
    _sums[modules] = _joined(sums)
    return _sums[modules]


def file_sum(path: Path) -> str:
    """SHA-256 of a file; read once a process, unless it changes."""
    at = path.stat()
    if time.time_ns() - at.st_ctime_ns < SETTLED_NS:
        return _read(path)
    return _kept(path, at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns)


@lru_cache(maxsize=1000)
def _kept(path: Path, *identity: int) -> str:
    return _read(path)


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _joined(sums: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()[:DIGITS]
