"""Runs that are killed, and go on until they are done: python -m tests.faults.kills.

Each run is a process of its own, forked from this one, that is killed without a warning (SIGKILL):
at a random moment, or, aimed, at a line of the code that writes checkpoints, claims and records.
Then the same run is started again, and killed again, until it completes. Its record has to be that
of a run that nobody killed: losses, scores and all, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from experiments.config import RunConfig, compose
from experiments.run import runner

GIVEN = ("task=digits", "model=digits_tiny", "training.batch_size=8", "training.max_steps=-1")
GIVEN += ("training.epochs=2", "task.max_train_rows=48", "training.checkpoint_steps=2")
GIVEN += ("training.device=cpu", "training.progress=false", "measure.memory=false")
VARIANTS = {
    "wtacrs": ("estimator=wtacrs",),
    "lean": ("estimator=pps", "memory=lean", "model.config.hidden_dropout_prob=0.1"),
    "LoRA": ("estimator=wtacrs", "tuning=lora", "tuning.rank=8"),
    "bf16": ("estimator=wtacrs", "training.precision=bf16-autocast"),
    "by length": ("estimator=wtacrs", "training.group_by_length=true"),
}
AIMED = ("checkpoints.py", "store.py", "claims.py", "outcome.py")  # files whose lines are aimed at
LONGEST = 3.0  # seconds after which a run is killed at the latest


def work(folder: Path, variant: str) -> None:
    """One run, in the folder."""
    os.chdir(folder)
    overrides = (*GIVEN, *VARIANTS[variant], f"results_dir={folder / 'runs'}")
    runner.run(compose(RunConfig, overrides))


def in_a_process(do: Callable[[], None], kill_after: float | None = None) -> bool:
    """Whether ``do`` ended by itself, in a fork that is killed after so many seconds."""
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        code = 1
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
            do()
            code = 0
        finally:
            os._exit(code)
    if kill_after is not None:
        deadline = time.monotonic() + kill_after
        while time.monotonic() < deadline:
            if os.waitpid(child, os.WNOHANG)[0]:
                return True
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class Lines:
    """A tracer that counts lines of the files aimed at, and kills the process at one of them."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.count = at, 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.endswith(AIMED):
            return None
        if event == "line":
            self.count += 1
            if self.count == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
        return self


def traced(folder: Path, variant: str, at: int | None) -> None:
    lines = Lines(at)
    sys.settrace(lines)
    work(folder, variant)
    sys.settrace(None)
    (folder / "lines").write_text(str(lines.count))


def result(folder: Path) -> dict[str, Any]:
    """What the run's one record says, and that nothing else is left."""
    left = [path.name for path in (folder / "runs").iterdir() if path.name != ".claims.lock"]
    checkpoints = [*(folder / "outputs" / "checkpoints").glob("*")]
    if len(left) != 1 or checkpoints:
        raise AssertionError(f"left behind: {left} {checkpoints}")
    record = json.loads((folder / "runs" / left[0]).read_text())
    if record["status"] != "completed":
        raise AssertionError(f"the record says {record['status']}")
    return {key: record[key] for key in ("metrics", "sampling")}


def episode(expected: dict[str, Any], variant: str, kill: Callable[[Path, int], bool]) -> int:
    """Run, killed by ``kill`` (folder, how often before), until it is done; how often that was.

    Raises:
        AssertionError: the record is another one than ``expected``.
    """
    folder, kills = Path(tempfile.mkdtemp(prefix="kills-")), 0
    while not kill(folder, kills):
        kills += 1
    if result(folder) != expected:
        raise AssertionError(f"{variant}, killed {kills} times, in {folder}: another result")
    shutil.rmtree(folder)
    return kills


def kill_all(random_kills: int, aimed_kills: int, seed: int, variants: tuple[str, ...]) -> str:
    """So many kills of each sort, over the variants in turn; what was done, in words."""
    torch.set_num_threads(1)
    chance, done = random.Random(seed), {"random": 0, "aimed": 0, "episodes": 0}
    expected, lines = {}, {}
    for variant in variants:
        whole = Path(tempfile.mkdtemp(prefix="kills-"))
        assert in_a_process(lambda: traced(whole, variant, None)), variant  # noqa: B023
        expected[variant], lines[variant] = result(whole), int((whole / "lines").read_text())
        shutil.rmtree(whole)
    turn = 0
    while done["random"] < random_kills or done["aimed"] < aimed_kills:
        variant = variants[turn % len(variants)]
        turn += 1
        if done["random"] < random_kills:

            def at_random(folder: Path, before: int, variant: str = variant) -> bool:
                last = before >= 6  # or it may never be done
                seconds = None if last else chance.uniform(0, LONGEST)
                return in_a_process(lambda: work(folder, variant), seconds)

            done["random"] += episode(expected[variant], variant, at_random)
            done["episodes"] += 1
        if done["aimed"] < aimed_kills:
            at = 1 + (turn * 7919) % lines[variant]

            def at_a_line(folder: Path, before: int, variant: str = variant, at: int = at) -> bool:
                return in_a_process(lambda: traced(folder, variant, None if before else at))

            done["aimed"] += episode(expected[variant], variant, at_a_line)
            done["episodes"] += 1
    return (
        f"{done['random']} random and {done['aimed']} aimed kills in {done['episodes']} episodes of"
        f" {', '.join(variants)}: every record is that of a run that was not killed (seed {seed})"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.kills", description=__doc__)
    parser.add_argument("--random", type=int, default=200)
    parser.add_argument("--aimed", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(kill_all(options.random, options.aimed, options.seed, tuple(VARIANTS)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
