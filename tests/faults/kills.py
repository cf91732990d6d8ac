"""Runs that are killed, and go on until they are done: python -m tests.faults.kills.

Each run, or sweep, is a process of its own, forked from this one, that is killed without a warning
(SIGKILL): at a random moment, or, aimed, at a line of the code that writes checkpoints, claims and
records, another line each time. Then the same is started again, and killed again, until it
completes. Its records have to be those of runs that nobody killed: losses, scores and all, bit for
bit. TMPDIR=/dev/shm does it on tmpfs.

--every-line aims at each line of that code that a run reaches, one that was killed before too, at
the first and the last time that it is reached; it prints the lines that none reaches.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import run as program
from tests.faults.lines import OURS, Aim, Lines, lines_of
from tests.faults.processes import in_a_process
from wtacrs_experiments.config import RunConfig, compose
from wtacrs_experiments.run import checkpoints, runner

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
# The processes of their own that it has are killed as well, at random moments.
BY_JOBLIB = ("-m", "launcher=joblib", "hydra.launcher.n_jobs=2", "estimator=full,wtacrs")
VARIANTS["sweep by joblib"] = (*BY_JOBLIB, "seed=0,1")
SMALL = ("estimator=wtacrs", "task.max_train_rows=16", "training.checkpoint_steps=1")
SMALL += ("training.save_model=true",)
OF_EVERY_LINE = {
    "small": SMALL,
    "small, by length": (*SMALL, "training.group_by_length=true"),
    "small, completed before": (*SMALL, "overwrite=true"),
    "small, damaged before": SMALL,
}
# Seconds until the latest kill; 3 for one run.
LONGEST = {"sweep": 8.0, "sweep of LoRA": 5.0, "sweep by joblib": 25.0}


def work(folder: Path, variant: str) -> None:
    """One run or sweep, in the folder."""
    os.chdir(folder)
    overrides = (*GIVEN, *(VARIANTS | OF_EVERY_LINE)[variant], f"results_dir={folder / 'runs'}")
    if "-m" in overrides:
        sys.argv = ["run.py", *overrides]
        assert program.main() == 0
    else:
        runner.run(compose(RunConfig, overrides))


def traced(folder: Path, variant: str, at: Aim | None) -> None:
    lines = Lines(at)
    sys.settrace(lines)
    work(folder, variant)
    sys.settrace(None)
    (folder / "lines").write_text(json.dumps(lines.counts))


def counted(folder: Path) -> dict[str, int]:
    """How often the process that ended in ``folder`` reached each line."""
    found: dict[str, int] = json.loads((folder / "lines").read_text())
    return found


def result(folder: Path) -> dict[str, Any]:
    """What each record says, by its name, and its model; and that nothing else is left."""
    left = [path for path in (folder / "runs").iterdir() if path.name != ".claims.lock"]
    models = [path for path in left if path.is_dir() and Path(f"{path}.json") in left]
    left = [path for path in left if path not in models]
    left += (folder / "outputs" / "checkpoints").glob("*")
    if others := [path for path in left if path.suffix != ".json"]:
        raise AssertionError(f"left behind: {others}")
    records = {path.name: json.loads(path.read_text()) for path in left}
    if any(record["status"] != "completed" for record in records.values()):
        raise AssertionError(f"{folder}: a record that is not completed")
    kept = ("metrics", "sampling")
    weights = [file for model in models for file in sorted(model.glob("*.safetensors"))]
    return {name: {key: one[key] for key in kept} for name, one in records.items()} | {
        file.parent.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in weights
    }


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
        aims[variant] = [(line, chance.randrange(n)) for line, n in counted(whole).items()]
        chance.shuffle(aims[variant])
        shutil.rmtree(whole)
    turn = 0
    while done["random"] < random_kills or done["aimed"] < aimed_kills:
        variant = variants[turn % len(variants)]
        turn += 1
        if done["random"] < random_kills:

            def at_random(folder: Path, before: int, variant: str = variant) -> bool:
                last = before >= 6  # or it may never be done
                seconds = None if last else chance.uniform(0, LONGEST.get(variant, 3.0))
                return in_a_process(lambda: work(folder, variant), seconds, chance)

            done["random"] += episode(expected[variant], variant, at_random)
            done["episodes"] += 1
        if done["aimed"] < aimed_kills and aims[variant]:
            at = aims[variant].pop()
            aims[variant].insert(0, at)

            def at_a_line(folder: Path, before: int, variant: str = variant, at: Aim = at) -> bool:
                return in_a_process(lambda: traced(folder, variant, None if before else at))

            done["aimed"] += episode(expected[variant], variant, at_a_line)
            done["episodes"] += 1
    return (
        f"{done['random']} random and {done['aimed']} aimed kills in {done['episodes']} episodes of"
        f" {', '.join(variants)}: every record is that of a run that was not killed (seed {seed})"
    )


def kill_at_every_line(variants: tuple[str, ...]) -> str:
    """A kill at each line that is reached, of a run or of one that goes on; what was done."""
    torch.set_num_threads(1)
    seen: set[str] = set()
    kills = 0
    for variant in variants:
        expected, todo = None, [()]  # type: tuple[Any, list[tuple[Aim, ...]]]
        while todo:
            aims, folder = todo.pop(), Path(tempfile.mkdtemp(prefix="kills-"))
            prepare(folder, variant)
            for at in (*aims, None):
                ended = in_a_process(lambda: traced(folder, variant, at))  # noqa: B023
                assert ended == (at is None), f"{variant}: {aims} in {folder}: not reached"
            expected = result(folder) if expected is None else expected
            assert result(folder) == expected, f"{variant}: {aims} in {folder}: other records"
            kills += len(aims)
            for line, count in counted(folder).items():
                if line not in seen:
                    todo += [(*aims, (line, n)) for n in sorted({0, count - 1})]
            seen |= counted(folder).keys()
            shutil.rmtree(folder)
    ours = [line for file in OURS for line in lines_of(file)]
    none = [f"{Path(line).name}" for line in ours if line not in seen]
    return (
        f"{kills} kills at {len(seen)} lines, {len(ours) - len(none)} of the {len(ours)} in "
        f"{', '.join(OURS)}: every record is that of a run that was not killed. Reached by none: "
        f"{', '.join(none)}"
    )


def prepare(folder: Path, variant: str) -> None:
    """What was there before."""
    if variant.endswith("completed before"):
        assert in_a_process(lambda: work(folder, "small"))
    if variant.endswith("damaged before"):
        source, first = inspect.getsourcelines(checkpoints.Checkpoints.on_save)
        last = f"{checkpoints.__file__}:{first + len(source) - 1}"
        assert not in_a_process(lambda: traced(folder, "small", (last, 1)))
        (file,) = folder.glob("outputs/checkpoints/*/checkpoint-*/optimizer.pt")
        os.truncate(file, 100)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.kills", description=__doc__)
    parser.add_argument("--random", type=int, default=200)
    parser.add_argument("--aimed", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=[*VARIANTS])
    parser.add_argument("--every-line", action="store_true")
    options = parser.parse_args()
    if options.every_line:
        print(kill_at_every_line(tuple(OF_EVERY_LINE)))
        return 0
    print(kill_all(options.random, options.aimed, options.seed, tuple(options.variants)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
