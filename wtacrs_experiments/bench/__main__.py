"""Time of sampling: python -m wtacrs_experiments.bench [what ...]; all of it by default.

step: a whole training step of MiniLM (batch 32, sequence 128, float32, AdamW), sampled against
full. The floating-point limit is (2 + budget) / 3 of the linear layers' share.
step_without_dropout: the same with dropout 0, whose random numbers cost a CPU much.
memory: the same step under the presets of conf/memory, against full with eager attention;
memory_bert_base, memory_t5_base: the same for BERT-Base and T5-Base at batch 16.
selection: what choosing and gathering rows adds to one linear layer, 4,096 rows, 768 -> 3,072.
launches: kernels that a sampled layer launches beyond a plain one, counted, not timed.

Machines are noisy, so the two sides of a comparison alternate in one process, each pair gives a
ratio, and the median over the pairs counts. Written to outputs/bench, or to --output.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from wtacrs import (
    ESTIMATORS,
    PRESETS,
    Handle,
    MemoryConfig,
    SamplingConfig,
    apply_,
)
from wtacrs.attention.interface import set_attention
from wtacrs.config import preset
from wtacrs_experiments.bench.kept import OUTPUT, keep
from wtacrs_experiments.bench.layer import bench_launches, bench_selection
from wtacrs_experiments.bench.timing import paired, summary
from wtacrs_experiments.config import PlanConfig, compose
from wtacrs_experiments.run.models import new_model


def new(name: str) -> nn.Module:
    """The model of conf/model with random weights, in training mode."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return new_model(compose(PlanConfig, [f"model={name}"]).model).to(device).train()


def training_step(
    model: nn.Module,
    b: int,
    handle: Handle | None = None,
    tokens: int = 128,
    autocast: bool = False,
) -> Callable[[], None]:
    """One full training step on a batch of ``b`` random sequences of ``tokens`` tokens.

    Args:
        autocast: the forward pass in bf16, weights in float32.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    high = min(int(cast(Any, model.config).vocab_size), 20000)
    ids = torch.randint(min(1000, high // 2), high, (b, tokens), generator=generator).to(device)
    answer = (b, 2) if getattr(model.config, "is_encoder_decoder", False) else (b,)
    labels = torch.randint(0, 2, answer, generator=generator).to(device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    if handle is not None:
        batch["sample_ids"] = torch.arange(b)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def bench_step(
    estimators: list[str], budget: float, pairs: int, dropout: bool = True
) -> dict[str, Any]:
    """Ratio of the sampled to the full training step, for each estimator."""
    full = new("minilm")
    for module in full.modules():
        if isinstance(module, nn.Dropout) and not dropout:
            module.p = 0.0
    ratios = {}
    for estimator in estimators:
        sampled = copy.deepcopy(full)
        memory = preset("linear", estimator=estimator, budget=budget)
        handle = apply_(sampled, memory, num_samples=32, max_tokens=128)
        work = paired(training_step(sampled, 32, handle), training_step(full, 32), pairs)
        ratios[f"{estimator}@{budget:g}"] = summary(work)
    return ratios


METHODS: dict[str, MemoryConfig] = {
    **PRESETS,
    "lean without recomputation": replace(PRESETS["lean"], recompute="none"),
    "checkpoint, attention by transformers' choice": PRESETS["checkpoint"],
    "checkpoint": replace(PRESETS["checkpoint"], attention="eager"),
    "full, attention by transformers' choice": PRESETS["plain"],
}
LEAST = ("lean", "leanest", "checkpoint")
SHOWN = tuple(name for name in METHODS if name not in ("plain", "checkpoint_offload"))


def bench_memory(
    estimators: list[str],
    budget: float,
    pairs: int,
    model: str = "minilm",
    b: int = 32,
    methods: Sequence[str] = SHOWN,
) -> dict[str, Any]:
    """Ratio of a step under each memory preset to the plain step with eager attention."""
    plain = new(model)
    full = copy.deepcopy(plain)
    set_attention(full, "eager")
    ratios = {}
    for method in methods:
        samples = METHODS[method].sampling is not None
        for estimator in estimators if samples else ["full"]:
            sampling = SamplingConfig(estimator=estimator, budget=budget)
            memory = replace(METHODS[method], sampling=sampling if samples else None)
            other = copy.deepcopy(plain)
            handle = apply_(other, memory, num_samples=b, max_tokens=128)
            name = f"{method}, {estimator}@{budget:g}" if samples else method
            sides = training_step(other, b, handle), training_step(full, b)
            ratios[name] = summary(paired(*sides, pairs))
    return ratios


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m wtacrs_experiments.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    benches: dict[str, Callable[..., dict[str, Any]]] = {
        "step": bench_step,
        "step_without_dropout": partial(bench_step, dropout=False),
        "memory": bench_memory,
        "memory_bert_base": partial(
            bench_memory,
            model="bert_base",
            b=16,
            methods=("linear", "lean without recomputation", "lean", "leanest", "checkpoint"),
        ),
        "memory_t5_base": partial(bench_memory, model="t5_base", b=16, methods=LEAST),
        "selection": bench_selection,
        "launches": bench_launches,
    }
    parser.add_argument("what", nargs="*", choices=[*benches, []], help="default: all")
    parser.add_argument(
        "--estimators",
        nargs="+",
        choices=ESTIMATORS,
        help="default: wtacrs; for selection and launches wtacrs and pps",
    )
    parser.add_argument("--budget", type=float, default=0.3)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    for name in options.what or benches:
        both = name in ("selection", "launches")
        estimators = options.estimators or (["wtacrs", "pps"] if both else ["wtacrs"])
        ratios = benches[name](estimators, options.budget, options.pairs)
        what = "kernels_beyond_plain" if name == "launches" else "ratio_to_full"
        keep({"bench": name, what: ratios}, options.output / f"{name}.json")
        for key, ratio in ratios.items():
            print(f"{name} {key}: {_told(ratio)}")


def _told(ratio: dict[str, float]) -> str:
    if "per_layer" in ratio:
        return f"{ratio['per_layer']:g} kernels a layer, {ratio['per_step']:g} a step beside them"
    spread = f"p10 {ratio['p10']:.3f}, p90 {ratio['p90']:.3f}, n = {ratio['n']}"
    return f"{ratio['median']:.3f} of full ({spread})"


if __name__ == "__main__":
    main()
