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
FILE = "failed.txt"  # in the folder that Hydra makes for a sweep


class Failures(Callback):
    """What failed of the runs of this command; Hydra calls it when a sweep ends."""

    told: ClassVar[list[str]] = []
    runs: ClassVar[int] = 1

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        Failures.runs = sum(path.name.isdigit() for path in folder.iterdir())
        if (folder / FILE).exists():
            Failures.told.extend((folder / FILE).read_text(encoding="utf-8").splitlines())


def tell_failure(error: UserError) -> None:
    """Say that the run of this process failed; the others of the sweep go on."""
    this = HydraConfig.get()
    text = f"{' '.join(this.overrides.task)}: {str(error).splitlines()[0]}"
    if this.mode == RunMode.RUN:
        Failures.told.append(text)
        return
    with Path(this.sweep.dir, FILE).open("a", encoding="utf-8") as file:
        file.write(f"{text}\n")


def check_launcher(texts: Sequence[str]) -> None:
    """Raise UserError for a launcher whose package is missing."""
    for text in texts:
        key, _, name = text.partition("=")
        if key != "launcher" or name not in PLUGINS:
            continue
        module, extra = PLUGINS[name]
        try:
            found = find_spec(module)
        except ModuleNotFoundError:  # of the package that it would be in
            found = None
        if found is None:
            raise UserError(f"{text} needs a package: pip install 'wtacrs[{extra}]'")
