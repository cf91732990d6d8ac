"""A sweep: which launcher runs it, and what of it failed, whichever process that was in."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode

from wtacrs_experiments.errors import UserError, first_line

#: Launcher -> the module of Hydra that it needs, and the extra that brings it.
PLUGINS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "joblib"),
    "ray": ("hydra_plugins.hydra_ray_launcher", "ray"),
    "slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "submitit": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
}
# In the folder of Hydra's for a sweep: a line for each run, and how many they are.
BEGUN, FAILED, TOTAL = "begun.txt", "failed.txt", "total.txt"

Failure = dict[str, Any]  # overrides: of the run; why: in one line


class Sweep(Callback):
    """Which runs of this command began and which failed, whatever process that was in, and also of
    a sweep that does not come to its end; Hydra calls it."""

    folder: ClassVar[Path | None] = None
    told: ClassVar[list[Failure]] = []  # of a single run
    runs: ClassVar[int] = 0  # that this command asks for

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        Sweep.folder = Path(config.hydra.sweep.dir)
        for name in (BEGUN, FAILED):  # of an earlier sweep in the same folder
            (Sweep.folder / name).unlink(missing_ok=True)
        Sweep.folder.mkdir(parents=True, exist_ok=True)
        (Sweep.folder / TOTAL).write_text(str(Sweep.runs), encoding="utf-8")


def begin() -> None:
    """Say that a run of this process begins, in the folder where the command was typed: a worker of
    Ray's is in that of its cluster."""
    this = HydraConfig.get()
    if not this.job.chdir:
        os.chdir(this.runtime.cwd)
    _note(BEGUN, ".")


def place() -> str:
    """Which run of a sweep this process carries out, "run 3 of 12"; "" for a single one."""
    if not HydraConfig.initialized() or (this := HydraConfig.get()).mode != RunMode.MULTIRUN:
        return ""
    file = Path(this.sweep.dir, TOTAL)
    total = file.read_text(encoding="utf-8") if file.exists() else "?"
    return f"run {this.job.num + 1} of {total}"


def tell_failure(error: UserError) -> None:
    """Say that the run of this process failed; the others of the sweep go on."""
    this = HydraConfig.get()
    failure = {"overrides": [*this.overrides.task], "why": first_line(error)}
    if this.mode == RunMode.RUN:
        Sweep.told.append(failure)
    _note(FAILED, json.dumps(failure))


def failures() -> tuple[list[Failure], int]:
    """What failed, and of how many runs."""
    if Sweep.folder is None:
        return Sweep.told, 1
    begun, failed = (
        path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for path in (Sweep.folder / BEGUN, Sweep.folder / FAILED)
    )
    return [json.loads(line) for line in failed], len(begun)


def summary(failed: Sequence[Failure], runs: int, program: str, options: Sequence[str]) -> str:
    """What failed of a sweep: of each run why, and the command that repeats it.

    Args:
        program: how this one was started, "python run.py".
        options: those of its arguments that begin with "-", and their values.
    """
    lines = [f"{len(failed)} of {runs} failed"]
    kept = [option for option in options if option not in ("-m", "--multirun")]
    for one in failed:
        given = [text for text in one["overrides"] if not text.startswith("launcher=")]
        if "mode=measure" in given:  # says both
            given.remove("measure=memory")
        lines += [f"  {one['why']}", f"    {program} {shlex.join([*kept, *given])}"]
    return "\n".join(lines)


def _note(name: str, text: str) -> None:
    this = HydraConfig.get()
    if this.mode == RunMode.MULTIRUN:
        with Path(this.sweep.dir, name).open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")


def check_launcher(texts: Sequence[str], sweeps: bool) -> None:
    """Raise UserError for a launcher whose package is missing, or with nothing to launch."""
    for text in texts:
        key, _, name = text.partition("=")
        if key != "launcher":
            continue
        if "," in name:
            raise UserError(f"{text}: a sweep has one launcher")
        if name not in PLUGINS:
            continue
        if not sweeps:
            raise UserError(f"{text} is of a sweep; add -m")
        module, extra = PLUGINS[name]
        try:
            found = find_spec(module)
        except ModuleNotFoundError:  # of the package that it would be in
            found = None
        if found is None:
            raise UserError(f"{text} needs a package: pip install 'wtacrs[{extra}]'")
