"""The error of dW under every estimator, budget and source of gradient norms, on real training.

At chosen steps the next training batch goes once through the plain model, forward and backward, to
catch X and dY of each sampled layer. Errors then follow in closed form
(``wtacrs.sampling.variance``), relative to ||dW||^2: no draw is made, nothing of the training run
changes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from experiments.priors import PRIORS, BucketMeans
from wtacrs import Sampler
from wtacrs.sampling.estimators import normalise, rows_kept
from wtacrs.sampling.grad_norms import Batch
from wtacrs.sampling.variance import (
    expected_squared_error,
    optimal_winners,
    outer_gram,
    theorem2_holds,
    winner_mass,
)
from wtacrs.sampling.weights import row_norms, row_probabilities

MASS_POINTS = 50  # points of the curve P_c against c / n
PPS_STARTS = 16  # of the systematic draw; exact enumeration takes n + 1


class VarianceProbe:
    """A forward pre-hook that measures at the steps of ``config`` (the group ``measure``).

    Register it before the hook that takes ``sample_ids`` away. ``results`` fills as steps pass.
    """

    def __init__(self, model: PreTrainedModel, sampler: Sampler, config: Any) -> None:
        self.config, self.sampler = config, sampler
        self.results: list[dict[str, Any]] = []
        self.priors = {name: BucketMeans(bucket) for name, bucket in PRIORS.items()}
        self._step = 0
        self._inputs: dict[str, Tensor] = {}
        self._observe = sampler.grad_norms.observe
        sampler.grad_norms.observe = self._observe_also  # type: ignore[method-assign]
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if model.training:
            self._inputs = {key: value for key, value in kwargs.items() if torch.is_tensor(value)}
            if self._step in self.config.probe_steps:
                self.results.append({"step": self._step, **self._measure(model)})
            self._step += 1

    def _observe_also(self, name: str, batch: Batch, norms: Tensor) -> None:
        self._observe(name, batch, norms)
        for prior in self.priors.values():
            prior.observe(name, self._inputs, norms)

    def _measure(self, model: PreTrainedModel) -> dict[str, Any]:
        facts = dict(self._inputs)
        self.sampler.start_batch(facts.pop("sample_ids"), facts["attention_mask"])
        caught = catch(model, self.sampler, facts)
        rows: dict[tuple[str, float, str], list[float]] = {}
        winners: dict[tuple[float, str], list[float]] = {}
        theorem: dict[tuple[float, str], list[bool]] = {}
        mass: dict[str, list[float]] = {}
        for leader, names in caught.groups.items():
            x = caught.x[leader]
            batch = self.sampler.batch_of(leader, x)
            assert batch is not None
            weights = {s: self._probabilities(s, leader, names, caught, batch) for s in self._all()}
            valid = weights["none"] > 0
            x = x.reshape(-1, x.shape[-1])[valid]
            for name in names:
                gram = outer_gram(x, caught.dy[name][valid])
                exact = float(gram.sum())
                for source, p in weights.items():
                    p = p[valid]
                    for budget in self.config.budgets:
                        k = rows_kept(len(valid), budget)  # padding counts in n, as in training
                        for estimator in self.config.estimators:
                            error = expected_squared_error(
                                estimator, gram, p, min(k, len(p)), starts=PPS_STARTS
                            )
                            rows.setdefault((estimator, budget, source), []).append(error / exact)
                        k = min(k, len(p))
                        c = optimal_winners(p, k)
                        winners.setdefault((budget, source), []).append(c / k)
                        theorem.setdefault((budget, source), []).append(theorem2_holds(p, k))
                mass[name] = _curve(winner_mass(weights["oracle"][valid]))
        return {
            "rows": int(next(iter(caught.dy.values())).shape[0]),
            "layers": [name for names in caught.groups.values() for name in names],
            "errors": [
                {"estimator": e, "budget": b, "source": s, "relative_squared_error": _short(v)}
                for (e, b, s), v in rows.items()
            ],
            "winners": [
                {"budget": b, "source": s, "share": _short(v), "theorem2_holds": theorem[b, s]}
                for (b, s), v in winners.items()
            ],
            "winner_mass": mass,
        }

    def _all(self) -> list[str]:
        return [*self.config.sources, *self.priors]

    def _probabilities(
        self, source: str, leader: str, names: list[str], caught: Caught, batch: Batch
    ) -> Tensor:
        x = caught.x[leader]
        norms: Tensor | None
        if source == "oracle":
            norms = sum(row_norms(caught.dy[name]).square() for name in names).sqrt()  # type: ignore[union-attr]
        elif source in self.priors:
            norms = self.priors[source].estimate(leader, self._inputs)
        else:
            norms = self.sampler.grad_norms.estimate(leader, batch, x.device, source)
        mask = None if batch.mask is None else batch.mask.reshape(-1)
        floor = 0.0 if source == "oracle" else self.sampler.config.floor
        p = row_probabilities(x.reshape(-1, x.shape[-1]), norms, mask, floor)
        # Rows without gradient: any probability is right, and 0 / 0 is not.
        return normalise(p.clamp(min=1e-30) * (mask if mask is not None else 1))


class Caught:
    """X by first reader, dY by layer, and which layers read one input."""

    def __init__(self) -> None:
        self.x: dict[str, Tensor] = {}
        self.dy: dict[str, Tensor] = {}
        self.groups: dict[str, list[str]] = {}


def catch(model: PreTrainedModel, sampler: Sampler, inputs: dict[str, Tensor]) -> Caught:
    """One plain forward and backward pass; parameters and generators stay as they are."""
    caught = Caught()
    hooks = []
    for name, module in model.named_modules():
        if name in sampler.names:

            def forward(_: Any, args: Any, output: Tensor, name: str = name) -> None:
                leader = next((key for key, x in caught.x.items() if x is args[0]), name)
                caught.x.setdefault(leader, args[0])
                caught.groups.setdefault(leader, []).append(name)
                output.register_hook(lambda dy: caught.dy.update({name: dy.flatten(0, -2)}))

            hooks.append(module.register_forward_hook(forward))
    config, sampler.config = sampler.config, replace(sampler.config, estimator="full")
    counted = sampler.rows_seen, sampler.rows_kept
    with torch.random.fork_rng():
        loss = model.forward(**inputs).loss  # not model(...): the hooks of a training step wait
        loss.backward()
    sampler.config = config
    sampler.rows_seen, sampler.rows_kept = counted
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
