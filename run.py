"""The command: python run.py estimator=wtacrs task=sst2, or -m for a sweep. See README.md."""

from __future__ import annotations

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(config: DictConfig) -> None:
    from experiments.run.runner import RunError, run  # after Hydra: `--help` needs no torch

    try:
        run(config)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise  # Hydra goes on with the sweep and fails at its end
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; the same command runs it again", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
