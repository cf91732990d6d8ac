"""Error of dW, rows picked late: python -m wtacrs_experiments.bench.late_error [overrides].

MiniLM on CoLA under memory=leanest, as it trains: after some exact steps, the same batch with the
same dropout is drawn many times, and each gradient held against the exact one of that batch.
Relative squared error, total over the sampled layers: sum ||dW_drawn - dW||^2 / sum ||dW||^2, the
mean over the draws. The last line tells whether the mean of the draws is off by more than it should
be: its squared distance times the number of draws, over the error of one draw; 1 is expected.
Written to outputs/bench/late_error.json, or below --output.
"""

from __future__ import annotations

import copy
import sys
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from wtacrs import SamplingConfig, apply_
from wtacrs.config import preset
from wtacrs_experiments.bench.kept import keep, overrides_and_output
from wtacrs_experiments.config import RunConfig, compose
from wtacrs_experiments.run import runner, training

DEFAULTS = ["model=minilm", "task=cola", "memory=plain", "estimator=full", "logging=none"]
STEPS = (0, 30)  # exact steps before each probe, all in the first epoch
DRAWS = 16
BUDGETS = 0.3, 0.1
METHODS = ("crs", "none"), ("wtacrs", "none"), ("pps", "none"), ("pps", "lowrank")


def gradients(model: Any, batch: dict[str, Tensor], names: list[str]) -> Tensor:
    """The gradients of the weights ``names``, one after the other, of a step with fixed dropout."""
    torch.manual_seed(0)
    model.zero_grad(set_to_none=True)
    model(**batch).loss.backward()
    return torch.cat([model.get_parameter(f"{name}.weight").grad.flatten() for name in names])


def error(model: Any, batch: dict[str, Tensor], estimator: str, center: str, budget: float) -> Any:
    """Of ``DRAWS`` draws: the mean relative squared error, and by how much their mean is off."""
    sampling = SamplingConfig(estimator=estimator, center=center, budget=budget)
    other = copy.deepcopy(model)
    handle = apply_(other, preset("leanest", **vars(sampling)))
    assert handle.sampler is not None
    exact = gradients(model, batch, handle.sampler.names)
    gradients(other, batch, handle.sampler.names)  # directions have a batch to warm up on
    total, mean = 0.0, torch.zeros_like(exact)
    for _ in range(DRAWS):
        drawn = gradients(other, batch, handle.sampler.names)
        total += float((drawn - exact).square().sum() / exact.square().sum()) / DRAWS
        mean += drawn / DRAWS
    off = float((mean - exact).square().sum() / exact.square().sum())
    return {"relative_squared_error": total, "mean_off": off * DRAWS / total}


def main(arguments: list[str]) -> None:
    overrides, output = overrides_and_output(__doc__, arguments)
    config = compose(RunConfig, [*DEFAULTS, *overrides])
    tokenizer, data, model, handle = runner.prepare(config)
    handle.undo()  # each method is applied to a copy
    with TemporaryDirectory() as folder:
        trainer = training.build_trainer(config, model, tokenizer, data, Path(folder), [])
    size, collate = config.training.batch_size, trainer.data_collator
    batches = iter(DataLoader(data.train, size, collate_fn=collate))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.training.learning_rate)
    model.train()
    found, done = [], 0
    for step in STEPS:
        for _ in range(step - done):
            optimizer.zero_grad()  # what was measured left gradients
            model(**next(batches)).loss.backward()
            optimizer.step()
        batch, done = dict(next(batches)), step
        for budget, (estimator, center) in product(BUDGETS, METHODS):
            one = error(model, batch, estimator, center, budget)
            method = {"estimator": estimator, "center": center, "budget": budget}
            found.append({"step": step, **method, **one})
            told = f"{one['relative_squared_error']:.3f} (mean off {one['mean_off']:.2f})"
            print(f"step {step}: {estimator}/{center}@{budget:g} {told}")
    result = {"overrides": [*DEFAULTS, *overrides], "draws": DRAWS, "errors": found}
    keep(result, output / "late_error.json")


if __name__ == "__main__":
    main(sys.argv[1:])
