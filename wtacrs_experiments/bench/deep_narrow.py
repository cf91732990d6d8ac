"""Deep, narrow models, where what a block keeps weighs most: wtacrs_experiments.bench.deep_narrow.

24 layers of width 128 (T5, BERT and Llama types), a real step on the CPU, float32, dropout on. The
peak is that of torch's own profiler, which sees each allocation, beyond parameters and gradients,
which are there before the step; the operations are those of matrix products. Both over the plain
step's, with the attention that transformers chooses. Written to outputs/bench, or to --output.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from wtacrs import PRESETS, SamplingConfig, apply_
from wtacrs_experiments.bench.kept import keep, overrides_and_output
from wtacrs_experiments.config import ModelConfig
from wtacrs_experiments.plan.rehearsal import Operations
from wtacrs_experiments.run.models import new_model

MODELS: dict[str, dict[str, Any]] = {
    "T5": {
        **{"model_type": "t5", "d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 512},
        **{"num_layers": 12, "vocab_size": 1000, "decoder_start_token_id": 0},
    },
    "BERT": {
        **{"model_type": "bert", "hidden_size": 128, "num_attention_heads": 4},
        **{"intermediate_size": 512, "num_hidden_layers": 24, "vocab_size": 1000},
    },
    "Llama": {
        **{"model_type": "llama", "hidden_size": 128, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "intermediate_size": 384, "num_hidden_layers": 24},
        "vocab_size": 1000,
    },
}
SIZES = {"T5": (16, 128), "BERT": (16, 128), "Llama": (8, 256)}  # batch, tokens
SAMPLING = SamplingConfig(budget=0.3)


def model_of(name: str) -> nn.Module:
    head = "language_model" if name == "Llama" else None
    torch.manual_seed(0)
    config = ModelConfig(name=name, source="hub", path="none", architecture=MODELS[name], head=head)
    return new_model(config).train()


def batch_of(name: str) -> dict[str, torch.Tensor]:
    """Random tokens without padding; T5 answers with two, a decoder predicts its input."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 1000, SIZES[name], generator=generator)
    labels = {"T5": ids, "Llama": ids, "BERT": ids[:, 0] % 2}[name]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def measure(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[int, int]:
    """(peak in bytes beyond parameters and gradients, operations) of a step after two others."""

    def step() -> None:
        model(**batch).loss.backward()

    step()  # gradients are made here and stay
    with Operations() as operations:
        step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate(change for _, change in changes)), operations.total


def main(arguments: list[str]) -> None:
    _, output = overrides_and_output(__doc__, arguments)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in MODELS:
        batch, plain = batch_of(name), model_of(name)
        full = measure(copy.deepcopy(plain), batch)
        for preset in ("checkpoint", "lean", "leanest"):
            model = copy.deepcopy(plain)
            sampling = SAMPLING if PRESETS[preset].samples else None
            apply_(model, replace(PRESETS[preset], sampling=sampling))
            peak, operations = measure(model, batch)
            one = {"full_over_peak": full[0] / peak, "relative_flops": operations / full[1]}
            found.setdefault(name, {})[preset] = one
            print(f"{name} {preset}: {one['full_over_peak']:.1f}x, {one['relative_flops']:.3f}")
    keep({"bench": "deep_narrow", "models": found}, output / "deep_narrow.json")


if __name__ == "__main__":
    main(sys.argv[1:])
