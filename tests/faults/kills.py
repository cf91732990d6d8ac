"""Runs that are killed, and go on until they are done: python -m tests.faults.kills.

Each run, or sweep, is a process of its own, forked from this one, that is killed without a warning
(SIGKILL): at a random moment, or, aimed, at a line of the code that writes checkpoints, claims and
records, another line each time. Then the same is started again, and killed again, until it
completes. Its records have to be those of runs that nobody killed: losses, scores and all, bit for
bit. TMPDIR=/dev/shm does it on tmpfs.
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

import run as program
from wtacrs_experiments.config import RunConfig, compose
from wtacrs_experiments.run import runner

GIVEN = ("task=digits", "model=digits_tiny", "training.batch_size=8", "training.max_steps=-1")
GIVEN += ("training.epochs=2", "task.max_train_rows=48", "training.checkpoint_steps=2")
GIVEN += ("training.device=cpu", "training.progress=false", "measure.memory=false")
VARIANTS = {
    "wtacrs": ("estimator=wtacrs",),
    "lean": ("estimator=pps", "memory=lean", "model.config.hidden_dropout_prob=0.1"),
    "LoRA": ("estimator=wtacrs", "tuning=lora", "tuning.rank=8"),
    "bf16": ("estimator=wtacrs", "training.precision=bf16-autocast"),
    "by length": ("estimator=wtacrs", "training.group_by_length=true"),
    "sweep": ("-m", "estimator=full,wtacrs", "memory=plain,lean", "training.group_by_length=true"),
    "sweep of LoRA": ("-m", "tuning=lora", "seed=0,1", "training.precision=bf16-autocast"),
}
AIMED = ("checkpoints.py", "store.py", "claims.py", "outcome.py")  # files whose lines are aimed at
LONGEST = {"sweep": 8.0, "sweep of LoRA": 5.0}  # seconds until the latest kill; 3 for one run


def work(folder: Path, variant: str) -> None:
    """One run or sweep, in the folder."""
    os.chdir(folder)
    overrides = (*VARIANTS[variant], *GIVEN, f"results_dir={folder / 'runs'}")
    if "-m" in overrides:
        sys.argv = ["run.py", *overrides]
        assert program.main() == 0
    else:
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
    """A tracer that counts lines of the files aimed at, and kills the process at one of them.

    ``counts`` has how many were done before, each time that a line of the source was reached.
    """

    def __init__(self, at: int | None = None) -> None:
        self.at, self.count = at, 0
        self.counts: dict[str, list[int]] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.endswith(AIMED):
            return None
        if event == "line":
            if self.count == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            line = f"{frame.f_code.co_filename}:{frame.f_lineno}"
            self.counts.setdefault(line, []).append(self.count)
            self.count += 1
        return self


def traced(folder: Path, variant: str, at: int | None) -> None:
    lines = Lines(at)
    sys.settrace(lines)
    work(folder, variant)
    sys.settrace(None)
    (folder / "lines").write_text(json.dumps([*lines.counts.values()]))


def result(folder: Path) -> dict[str, Any]:
    """What each record says, by its name, and that nothing else is left."""
    left = [path for path in (folder / "runs").iterdir() if path.name != ".claims.lock"]
    left += (folder / "outputs" / "checkpoints").glob("*")
    if others := [path for path in left if path.suffix != ".json"]:
        raise AssertionError(f"left behind: {others}")
    records = {path.name: json.loads(path.read_text()) for path in left}
    if any(record["status"] != "completed" for record in records.values()):
        raise AssertionError(f"{folder}: a record that is not completed")
    kept = ("metrics", "sampling")
    return {name: {key: one[key] for key in kept} for name, one in records.items()}


def episode(expected: dict[str, Any], variant: str, kill: Callable[[Path, int], bool]) -> int:
    """Run, killed by ``kill`` (folder, how often before), until it is done; how often that was.

    Raises:
        AssertionError: the record is another one than ``expected``.
    """
    folder, kills = Path(tempfile.mkdtemp(prefix="kills-")), 0
    while not kill(folder, kills):
        kills += 1
    if result(folder) != expected:
        raise AssertionError(f"{variant}, killed {kills} times, in {folder}: other records")
    shutil.rmtree(folder)
    return kills


def kill_all(random_kills: int, aimed_kills: int, seed: int, variants: tuple[str, ...]) -> str:
    """So many kills of each sort, over the variants in turn; what was done, in words."""
    torch.set_num_threads(1)
    chance, done = random.Random(seed), {"random": 0, "aimed": 0, "episodes": 0}
    expected, aims = {}, {}
    for variant in variants:
        whole = Path(tempfile.mkdtemp(prefix="kills-"))
        assert in_a_process(lambda: traced(whole, variant, None)), variant  # noqa: B023
        expected[variant] = result(whole)
        counts = json.loads((whole / "lines").read_text())
        aims[variant] = [chance.choice(of_a_line) for of_a_line in counts]
        chance.shuffle(aims[variant])
        shutil.rmtree(whole)
    turn = 0
    while done["random"] < random_kills or done["aimed"] < aimed_kills:
        variant = variants[turn % len(variants)]
        at = aims[variant][turn // len(variants) % len(aims[variant])]
        turn += 1
        if done["random"] < random_kills:

            def at_random(folder: Path, before: int, variant: str = variant) -> bool:
                last = before >= 6  # or it may never be done
                seconds = None if last else chance.uniform(0, LONGEST.get(variant, 3.0))
                return in_a_process(lambda: work(folder, variant), seconds)

            done["random"] += episode(expected[variant], variant, at_random)
            done["episodes"] += 1
        if done["aimed"] < aimed_kills:

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
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=[*VARIANTS])
    options = parser.parse_args()
    print(kill_all(options.random, options.aimed, options.seed, tuple(options.variants)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
