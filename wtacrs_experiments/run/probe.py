"""The error of dW under every method, budget and source of gradient norms, on real training.

At chosen steps the next training batch goes once through the plain model, forward and backward, to
catch X and dY of each sampled layer. Errors then follow in closed form
(``wtacrs.sampling.variance``), relative to ||dW||^2: no draw is made, nothing of the training run
changes. A method is an estimator, or an estimator and what it centres, "pps/lowrank"; all are held
against each other at equal memory, for what centring keeps comes out of k.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from wtacrs import ESTIMATORS, Sampler
from wtacrs.facts import mask_of
from wtacrs.randomness import Randomness
from wtacrs.sampling.batch import Facts
from wtacrs.sampling.centre import Centring
from wtacrs.sampling.known import Known, find_known
from wtacrs.sampling.select import normalise, rows_kept
from wtacrs.sampling.variance import (
    expected_squared_error,
    optimal_winners,
    outer_gram,
    theorem2_holds,
    winner_mass,
)
from wtacrs.sampling.weights import even_floor, probabilities_of, row_norms
from wtacrs_experiments.config import MeasureConfig
from wtacrs_experiments.errors import UserError

MASS_POINTS = 50  # points of the curve P_c against c / n


class VarianceProbe(TrainerCallback):
    """A forward pre-hook that measures at the steps of ``config`` (the group ``measure``), of which
    it has the first batch. ``results`` fills as steps pass.

    Raises:
        UserError: a method that is unknown.
    """

    def __init__(self, model: PreTrainedModel, sampler: Sampler, config: MeasureConfig) -> None:
        self.sampler = sampler
        self.steps, self.budgets = config.probe_steps or (), config.budgets or ()
        self.sources = config.sources or ()
        self.methods = [split_method(method) for method in config.methods or ()]
        self.results: list[dict[str, Any]] = []
        self._step = 0
        self._within = False  # a step, of which there are gradients already
        # Before the library's hook, which takes the sample ids away.
        model.register_forward_pre_hook(self, with_kwargs=True, prepend=True)

    def __call__(self, model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if model.training and not self._within:
            if self._step in self.steps:
                inputs = {key: value for key, value in kwargs.items() if torch.is_tensor(value)}
                self.sampler.settle()  # what the last backward pass told is known to this batch
                self.results.append({"step": self._step, **self._measure(model, inputs)})
            self._step += 1
            self._within = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._within = False

    def state_dict(self) -> dict[str, Any]:
        return {"results": self.results, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.results, self._step = state["results"], state["step"]

    def _measure(self, model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Any]:
        facts = Facts(inputs["sample_ids"], mask_of(model, inputs))
        shown = {key: value for key, value in inputs.items() if key != "sample_ids"}
        caught = catch(model, self.sampler, shown)
        errors: dict[tuple[str, str, float, str], list[float]] = {}
        winners: dict[tuple[float, str], tuple[list[float], list[bool]]] = {}
        mass: dict[str, list[float]] = {}
        for leader, names in caught.groups.items():
            for source in self.sources:
                read = Input(self.sampler, facts, caught, leader, source)
                for budget in self.budgets:
                    for estimator, centre in self.methods:
                        of = errors.setdefault((estimator, centre, budget, source), [])
                        of += [read.error(name, estimator, centre, budget) for name in names]
                    share, holds = winners.setdefault((budget, source), ([], []))
                    k, p = read.k(budget), read.drawn("none")[1]
                    share += [optimal_winners(p, k) / k] * len(names)
                    holds += [theorem2_holds(p, k)] * len(names)
                if source == "oracle":
                    mass[leader] = _curve(winner_mass(read.drawn("none")[1]))
        layers = [name for names in caught.groups.values() for name in names]
        return {
            "rows": int(next(iter(caught.dy.values())).shape[0]),
            "layers": layers,
            "squared_norm": _short([caught.squared_norm[name] for name in layers]),
            "errors": [
                {
                    **dict(zip(("estimator", "center", "budget", "source"), method, strict=True)),
                    "relative_squared_error": _short(v),
                }
                for method, v in errors.items()
            ],
            "winners": [
                {"budget": b, "source": s, "share": _short(share), "theorem2_holds": holds}
                for (b, s), (share, holds) in winners.items()
            ],
            "winner_mass": mass,
        }


def split_method(method: str) -> tuple[str, str]:
    """(estimator, center) of "pps" or "pps/lowrank".

    Raises:
        UserError: an estimator that no plugin has brought.
    """
    estimator, _, centre = method.partition("/")
    if estimator not in ESTIMATORS:
        known = ", ".join(ESTIMATORS)
        raise UserError(f"measure.methods holds {method!r}, which is none of {known}")
    return estimator, centre or "none"


class Caught:
    """X by first reader, dY (n, o) by layer, ||dW||^2, and which layers read one input."""

    def __init__(self) -> None:
        self.x: dict[str, Tensor] = {}
        self.dy: dict[str, Tensor] = {}
        self.groups: dict[str, list[str]] = {}
        self.squared_norm: dict[str, float] = {}


class Input:
    """One input, the layers that read it, and what one source knows of their gradients."""

    def __init__(
        self, sampler: Sampler, facts: Facts, caught: Caught, leader: str, source: str
    ) -> None:
        x = caught.x[leader]
        self.sampler, self.caught, self.leader, self.source = sampler, caught, leader, source
        self.x = x.reshape(-1, x.shape[-1])  # (n, i)
        rows = facts.rows_of(leader, x.shape)
        known, norms = find_known(rows, x.device, sampler.grad_norms, 0.0, True, source), None
        if source == "oracle":
            squares = [row_norms(caught.dy[name]).square() for name in caught.groups[leader]]
            norms = torch.stack(squares).sum(0).sqrt()
            known = known._replace(estimates=norms[None], squares=norms.square()[None, :, None])
        self.known: Known = known
        self.place = 0 if source == "oracle" else sampler.grad_norms.place(leader)
        self._drawn: dict[str, tuple[Tensor, Tensor]] = {}
        self._grams: dict[tuple[str, str], Tensor] = {}

    def k(self, budget: float) -> int:
        """Rows kept without centring. Padding counts in n, as in training, but is never kept."""
        return min(rows_kept(len(self.x), budget), int(self.known.valid.sum()))

    def drawn(self, centre: str) -> tuple[Tensor, Tensor]:
        """The rows that count of what ``centre`` leaves of X, and their probabilities."""
        if centre not in self._drawn:
            norms, squares = self.known.norms(self.place), self.known.squared_norms(self.place)
            rest = self.x
            if centre != "none":
                centring = self._centring(centre)
                classes, dtype = self.known.classes, rest.dtype
                rest = centring.split(self.leader, rest, classes, squares, dtype, False).rest
            floor = 0.0 if self.source == "oracle" else self.sampler.config.floor
            even = even_floor(self.known.valid, floor)
            p = probabilities_of(row_norms(rest) * norms, even, floor)
            counts = self.known.valid > 0
            # Rows without gradient: any probability is right, and 0 / 0 is not.
            self._drawn[centre] = rest[counts], normalise(p[counts].clamp(min=1e-30))
        return self._drawn[centre]

    def _centring(self, centre: str) -> Centring:
        ours = self.sampler.centring
        return ours if ours.kind == centre else Centring(centre, 0, Randomness(0, "directions"))

    def error(self, name: str, estimator: str, centre: str, budget: float) -> float:
        """Squared error of the layer's dW over its squared norm, at equal memory."""
        n, k = len(self.x), rows_kept(len(self.x), budget)
        if centre != "none":
            centring = self._centring(centre)
            q = centring.size(n, self.x.shape[1], self.known.classes.shape[1], k)
            k -= centring.cost(n, self.x.shape[1], q)
            centre = centre if q else "none"
        rest, p = self.drawn(centre)
        if (centre, name) not in self._grams:
            dy = self.caught.dy[name][self.known.valid > 0]
            self._grams[centre, name] = outer_gram(rest, dy)
        error = expected_squared_error(estimator, self._grams[centre, name], p, min(k, len(p)))
        return error / self.caught.squared_norm[name]


def catch(model: PreTrainedModel, sampler: Sampler, inputs: dict[str, Tensor]) -> Caught:
    """One plain forward and backward pass; parameters and generators stay as they are."""
    caught, seen = Caught(), set[str]()
    hooks = []
    for name, module in model.named_modules():
        if name in sampler.names:

            def forward(_: Any, args: Any, output: Tensor, name: str = name) -> None:
                if name in seen:  # computed again, in the backward pass
                    return
                seen.add(name)
                if not output.requires_grad:
                    raise UserError(
                        f"{name} is computed in parts, so its gradient cannot be read; measure the "
                        "variance with memory=linear or lean"
                    )
                leader = next((key for key, x in caught.x.items() if x is args[0]), name)
                caught.x.setdefault(leader, args[0])
                caught.groups.setdefault(leader, []).append(name)
                output.register_hook(lambda dy: caught.dy.update({name: dy.flatten(0, -2)}))

            hooks.append(module.register_forward_hook(forward))
    config, sampler.config = sampler.config, replace(sampler.config, budget=1.0)  # the plain layer
    counted = sampler.rows_seen, sampler.rows_kept
    with torch.random.fork_rng():
        loss = model.forward(**inputs).loss  # not model(...): the hooks of a training step wait
        loss.backward()
    sampler.config = config
    sampler.rows_seen, sampler.rows_kept = counted
    caught.squared_norm = {
        name: float(model.get_parameter(f"{name}.weight").grad.double().square().sum())
        for name in caught.dy
    }
    model.zero_grad(set_to_none=True)
    for hook in hooks:
        hook.remove()
    caught.x = {name: x.detach() for name, x in caught.x.items()}
    return caught


def _curve(mass: Tensor) -> list[float]:
    """P_c at c / n = 1/50, 2/50, ..., 1."""
    points = torch.linspace(0, 1, MASS_POINTS + 1)[1:] * len(mass)
    return _short(mass[(points.round().long() - 1).clamp(min=0)].tolist())


def _short(values: list[float]) -> list[float]:
    """Four digits: an error is not known better, and records stay readable."""
    return [float(f"{value:.4g}") for value in values]
