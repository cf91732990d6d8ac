"""Is what is called exact exact? python -m wtacrs_experiments.bench.exactness [overrides]

Trains from one seed under memory=plain (with eager attention, whose dropout the others replay) and
under memory=lean and leanest at budget 1, and compares the losses of all steps. Overrides are those
of run.py, say task=sst2. Written to outputs/bench/exactness.json, or below --output.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from wtacrs_experiments.bench.kept import keep, overrides_and_output
from wtacrs_experiments.config import RunConfig, compose
from wtacrs_experiments.run import runner, training

DEFAULTS = ["model=minilm", "task=cola", "training.epochs=1", "logging=none"]
SIDES = {
    "plain": ["memory=plain", "memory.attention=eager", "estimator=full"],
    "lean": ["memory=lean", "estimator=wtacrs", "budget=1.0"],
    "leanest": ["memory=leanest", "estimator=wtacrs", "budget=1.0"],
}


def losses(overrides: list[str]) -> Tensor:
    """The loss of each training step (steps,) of the run that the overrides describe."""
    config = compose(RunConfig, overrides)
    tokenizer, data, model, _ = runner.prepare(config)
    found: list[Tensor] = []
    model.register_forward_hook(lambda _model, _args, output: found.append(output.loss.detach()))
    with TemporaryDirectory() as folder:
        trainer = training.build_trainer(config, model, tokenizer, data, Path(folder), [])
        trainer.args.eval_strategy = "no"  # it draws no random number; it only takes time
        trainer.train()
    return torch.stack(found).double()


def main(arguments: list[str]) -> None:
    overrides, output = overrides_and_output(__doc__, arguments)
    curves = {side: losses([*DEFAULTS, *overrides, *own]) for side, own in SIDES.items()}
    plain = curves["plain"]
    differences = {
        side: (curve - plain).abs().max().item()
        for side, curve in curves.items()
        if side != "plain"
    }
    result = {
        "overrides": [*DEFAULTS, *overrides],
        "steps": len(plain),
        "largest_difference": differences,
        "losses": {side: curve.tolist() for side, curve in curves.items()},
    }
    keep(result, output / "exactness.json")
    for side, difference in differences.items():
        print(f"{side}: {len(plain)} steps, losses differ by at most {difference:.1e}")
    print(f"mean loss {plain.mean():.4f}: {output / 'exactness.json'}")


if __name__ == "__main__":
    main(sys.argv[1:])
