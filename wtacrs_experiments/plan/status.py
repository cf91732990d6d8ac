"""How far a sweep is: wtacrs status FOLDER [overrides of the sweep].

    wtacrs status results/ablation experiment=ablation seed=0,1,2 budget=0.1,0.3 ...

Without overrides, what is asked for is every setting in the folder for every seed of a sweep over
seeds. With them, it is the grid that they span (several calls of a sweep are several commands of
this). A run is running while its process lives; one that was killed, and left a mark and no record,
counts as interrupted. The time left is the median of the completed runs, for each that is to do,
one by one.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from wtacrs_experiments.config import RunConfig, as_record, compose
from wtacrs_experiments.config.arguments import add_folders, check_arguments, grid
from wtacrs_experiments.errors import UserError, one_line
from wtacrs_experiments.records.claims import SUFFIX, is_alive, read_claim
from wtacrs_experiments.records.label import label_of
from wtacrs_experiments.records.record import config_hash, read_record, without_hub_sum
from wtacrs_experiments.records.shape import check_config
from wtacrs_experiments.words import duration

Config = dict[str, Any]
STATES = ("completed", "running", "failed", "out_of_memory", "interrupted", "missing")


@dataclass
class Sweep:
    """What is known of each run: its name, by state; configs, errors, and seconds of the done."""

    found: dict[str, list[str]] = field(default_factory=lambda: {state: [] for state in STATES})
    configs: list[Config] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def seconds_left(self) -> float | None:
        """For all that is not completed, one after the other; None while none is completed."""
        todo = sum(len(names) for state, names in self.found.items() if state != "completed")
        return todo * median(self.seconds) if self.seconds else None


def read_sweep(folder: Path, overrides: Sequence[str] = (), folders: Sequence[Path] = ()) -> Sweep:
    """The state of the runs in ``folder``, with what ``overrides`` ask for and is not there.

    Args:
        folders: more folders with files of groups, beside ``conf/``.

    Raises:
        UserError: no such folder, a file in it that is no record, or overrides that say nothing.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give the results_dir of a sweep")
    sweep = Sweep()
    for path in sorted(folder.glob("*.json")):
        if path.with_suffix(SUFFIX).exists():
            continue  # it runs again
        record = read_record(path)
        sweep.found[record.status].append(path.stem)
        sweep.configs.append(record.config)
        if record.status == "completed":
            sweep.seconds.append(record.provenance.get("seconds") or 0.0)
        elif record.error is not None:
            message = (record.error.get("message") or "").splitlines()
            sweep.errors[path.stem] = ": ".join([record.error.get("type", "?"), *message[:1]])
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        if (claim := read_claim(path)) is not None:
            state = "running" if is_alive(claim, path) else "interrupted"
            sweep.found[state].append(path.stem)
            with suppress(ValueError):  # it was written by something else
                check_config(claim["config"])
                sweep.configs.append(claim["config"])
    sweep.found["missing"] = missing(sweep.configs, overrides, folders)
    return sweep


def missing(configs: list[Config], overrides: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Which of the runs asked for are in none of ``configs``."""
    if overrides:
        there = {config_hash(_as_asked_for(config)) for config in configs}
        return [label for key, label in asked_for(overrides, folders).items() if key not in there]
    settings: dict[str, tuple[str, set[int]]] = {}
    for config in configs:
        if config.get("measure", {}).get("alone"):
            continue  # it has no seeds to average over
        key = config_hash(config, without=("seed",))
        settings.setdefault(key, (label_of(config), set()))[1].add(config["seed"])
    # A sweep over seeds has several of one setting, or one of several settings.
    counted = Counter(seed for _, there in settings.values() for seed in there)
    several = {seed for _, there in settings.values() if len(there) > 1 for seed in there}
    seeds = sorted(seed for seed, count in counted.items() if count > 1 or seed in several)
    return [
        f"{label} seed={seed}"
        for label, there in settings.values()
        for seed in seeds
        if seed not in there
    ]


def _as_asked_for(config: Config) -> Config:
    """In how many processes a run was started is no part of what is asked for, nor what rows the
    hub had."""
    training = {k: v for k, v in config.get("training", {}).items() if k != "world_size"}
    return without_hub_sum(config) | {"training": training}


def asked_for(overrides: Sequence[str], folders: Sequence[Path] = ()) -> dict[str, str]:
    """Hash of the config -> what it is, of each point of the grid that ``overrides`` span.

    Raises:
        UserError: a group, choice, key or value that there is not, or rows that cannot be read.
    """
    from wtacrs_experiments.run.own_task import settle  # imports torch: a folder alone needs none

    points = {}
    given = check_arguments(RunConfig, overrides, sweeps=True, folders=folders)
    for _, point in grid(given, folders):
        config = as_record(settle(compose(RunConfig, point, folders), asks_hub=False))
        points[config_hash(config)] = f"{label_of(config)} seed={config['seed']}"
    return points


@one_line()
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="wtacrs status",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("overrides", nargs="*", help="as given to run.py -m, say seed=0,1,2")
    add_folders(parser)
    parser.add_argument("-m", "--multirun", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args(arguments)
    sweep = read_sweep(options.folder, options.overrides, options.config_dir)
    print(
        ", ".join(f"{len(names)} {state.replace('_', ' ')}" for state, names in sweep.found.items())
    )
    for state, names in sweep.found.items():
        for name in names if state != "completed" else ():
            print(f"  {state.replace('_', ' ')}: {name}  {sweep.errors.get(name, '')}".rstrip())
    left = sweep.seconds_left()
    if left:
        each = f"{median(sweep.seconds):.0f} s a run (median of {len(sweep.seconds)})"
        print(f"{duration(left)} left, one by one at {each}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
