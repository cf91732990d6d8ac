"""The command: wtacrs run estimator=wtacrs task=sst2, or -m for a sweep; run.py is the same.

mode=plan plans a step instead, mode=measure makes one, predict FOLDER FILE has a trained model
answer. Exit status 0; 1 after an error, 2 of a plan; 130 when interrupted.
"""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from wtacrs_experiments.config.arguments import grid
from wtacrs_experiments.config.command import command
from wtacrs_experiments.config.compose import register, typed
from wtacrs_experiments.config.places import CONF
from wtacrs_experiments.config.roots import RunConfig
from wtacrs_experiments.config.sweep import Sweep, begin, failures, summary, tell_failure
from wtacrs_experiments.errors import UserError


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def run_one(node: DictConfig) -> None:
    begin()
    try:
        config = typed(RunConfig, node)
        from wtacrs_experiments.run.runner import run  # not before: it loads torch

        run(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        tell_failure(error)
    except KeyboardInterrupt:
        print("interrupted; the same command runs it again", file=sys.stderr)
        sys.exit(130)


def main() -> int:
    if sys.argv[1:2] == ["predict"]:
        from wtacrs_experiments.run.predict import main as predict

        return predict(sys.argv[2:])
    program = sys.argv[0] if " " in sys.argv[0] else f"python {sys.argv[0]}"  # or wtacrs run
    asks = {"-sc", "--shell-completion"} & {*sys.argv}  # what Hydra answers as it stands
    try:
        mode, arguments = ("train", sys.argv[1:]) if asks else command(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if "mode=plan" in sys.argv else 1
    if mode == "plan":
        from wtacrs_experiments.plan.__main__ import main as plan

        return plan(arguments)
    sys.argv[1:] = arguments
    register()
    options = [t for t in arguments if t.startswith("-") or not ("=" in t or t.startswith("~"))]
    texts = [text for text in arguments if text not in options]
    Sweep.folder, Sweep.told, Sweep.runs = None, [], sum(1 for _ in grid(texts))
    try:
        run_one()
    finally:
        failed, runs = failures()
        if failed and runs > 1:
            print(summary(failed, runs, program, options), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
