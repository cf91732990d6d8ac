"""A sweep: which launcher runs it, and what of it failed, whichever process that was in."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode

from experiments.errors import UserError

#: Launcher -> the module of Hydra that it needs, and the extra that brings it.
PLUGINS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "joblib"),
    "slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "submitit": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
}
BEGUN, FAILED = "begun.txt", "failed.txt"  # a line a run, in the folder of Hydra's for a sweep


class Sweep(Callback):
    """Which runs of this command began and which failed, whatever process that was in, and also of
    a sweep that does not come to its end; Hydra calls it."""

    folder: ClassVar[Path | None] = None
    told: ClassVar[list[str]] = []  # of a single run

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        Sweep.folder = Path(config.hydra.sweep.dir)
        for name in (BEGUN, FAILED):  # of an earlier sweep in the same folder
            (Sweep.folder / name).unlink(missing_ok=True)


def begin() -> None:
    """Say that a run of this process begins."""
    _note(BEGUN, ".")


def tell_failure(error: UserError) -> None:
    """Say that the run of this process failed; the others of the sweep go on."""
    text = f"{' '.join(HydraConfig.get().overrides.task)}: {str(error).splitlines()[0]}"
    if HydraConfig.get().mode == RunMode.RUN:
        Sweep.told.append(text)
    _note(FAILED, text)


def failures() -> tuple[list[str], int]:
    """What failed, and of how many runs."""
    if Sweep.folder is None:
        return Sweep.told, 1
    begun, failed = (
        path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for path in (Sweep.folder / BEGUN, Sweep.folder / FAILED)
    )
    return failed, len(begun)


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
