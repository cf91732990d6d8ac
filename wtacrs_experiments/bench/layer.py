"""What sampling adds to a linear layer: time and kernels; part of ``wtacrs_experiments.bench``."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import nn

from wtacrs import Sampler, SamplingConfig, sample_linears_
from wtacrs.measure.launches import Launches
from wtacrs.sampling.early import left_side
from wtacrs.sampling.weights import row_norms
from wtacrs_experiments.bench.timing import paired, summary

LAYERS = 8  # between the depths at which kernels are counted


def bench_selection(estimators: list[str], budget: float, pairs: int) -> dict[str, Any]:
    """All that sampling adds, over a plain linear layer's forward and backward.

    What it saves, the part of the weight gradient's product that is not computed, is left out.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator(device).manual_seed(0)
    layer = nn.Linear(768, 3072, device=device)
    x = torch.randn(32, 128, 768, device=device, generator=generator)
    dy = torch.randn(4096, 3072, device=device, generator=generator)

    def plain() -> None:
        layer(x.detach().requires_grad_()).backward(dy.view(32, 128, -1))

    def selection(sampler: Sampler) -> None:
        sampler.start_batch(mask=mask)
        sampled = sampler.sample_rows("0", x)
        assert sampled is not None
        # In the backward pass: the norms for the next step, and the left side of the product.
        norms = row_norms(dy)
        sampled.report(norms)
        left_side(dy, sampled.kept, norms)

    mask = torch.ones(32, 128, device=device)
    ratios = {}
    for name in estimators:
        config = SamplingConfig(name, budget, include=["*"])
        sampler = sample_linears_(nn.Sequential(nn.Linear(768, 3072, device=device)), config)
        work = paired(partial(selection, sampler), plain, pairs)
        ratios[f"{name}@{budget:g}"] = summary(work)
    return ratios


def bench_launches(estimators: list[str], budget: float, pairs: int) -> dict[str, Any]:
    """Kernels of a step beyond the plain one's, with table, sample ids and mask on.

    Of each layer: the difference between two depths. Of a step: what does not grow with them. For
    layers that pick early and late, uncentred, and as the estimator centres by default.
    """
    counts = {}
    for estimator, center, late in product(estimators, ("none", "auto"), (False, True)):
        config = SamplingConfig(estimator=estimator, budget=budget, center=center)
        if center == "auto" and config.centring == "none":
            continue
        few, many = (_extra_launches(config, late, depth) for depth in (1, 1 + LAYERS))
        each = (many - few) / LAYERS
        centre = "" if center == "none" else f"/{config.centring}"
        name = f"{estimator}{centre}@{budget:g}, {'late' if late else 'early'}"
        counts[name] = {"per_layer": each, "per_step": few - each}
    return counts


def _extra_launches(config: SamplingConfig, late: bool, depth: int) -> int:
    """Kernels of the third step of ``depth`` sampled layers beyond those of plain ones."""
    b, t, width = 16, 32, 64
    mask = (torch.arange(t) < 24).expand(b, t)
    totals = []
    for sampled in (True, False):
        layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        model = nn.Sequential(layers)
        if sampled:
            sampler = sample_linears_(model, config, num_samples=b, max_tokens=t)
        for _ in range(3):  # the third knows norms, and all that is made once is made
            picks_late = sampler.recomputed() if sampled and late else nullcontext()
            with Launches() as launches, picks_late:
                if sampled:
                    sampler.start_batch(torch.arange(b), mask)
                x = torch.randn(b, t, width)
                for layer in layers:
                    x = layer(x)
                x.backward(torch.randn(b, t, width) * mask[..., None])
            model.zero_grad()
        totals.append(launches.total)
    return totals[0] - totals[1]
