"""The command: python run.py estimator=wtacrs task=sst2, or -m for a sweep. See README.md."""

from __future__ import annotations

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

ENDS: list[str | None] = []  # of each run of this process: None, or what it was and why it failed


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(config: DictConfig) -> None:
    from experiments.run.runner import RunError, run  # after Hydra: `--help` needs no torch

    try:
        run(config)
        ENDS.append(None)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        this = HydraConfig.get()
        if this.mode != RunMode.MULTIRUN:
            sys.exit(1)
        ENDS.append(f"{' '.join(this.overrides.task)}: {str(error).splitlines()[0]}")
        if not this.launcher._target_.endswith(".BasicLauncher"):
            raise  # in a process of its own: Hydra fails at the end of the sweep
    except KeyboardInterrupt:
        print("interrupted; the same command runs it again", file=sys.stderr)
        sys.exit(130)


def told() -> int:
    """Say at the end of a sweep what failed, if anything; returns the exit status."""
    failed = [end for end in ENDS if end is not None]
    if failed:
        print(f"{len(failed)} of {len(ENDS)} failed", *failed, sep="\n  ", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        main()
    finally:
        status = told()
    sys.exit(status)
