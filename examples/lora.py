"""LoRA by peft, with what it keeps beside what checkpointing keeps: python examples/lora.py.

A frozen layer needs no input for its gradient; its adapters do. The peaks are those of a step on
this machine, measured by the same counters for each preset.
"""

from __future__ import annotations

import copy

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import wtacrs
from wtacrs.measure.step import PeakMemory

MIB = 2**20
PRESETS = ("plain", "checkpoint", "lean", "leanest")


def new_model() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 4000}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, use_cache=False))
    return get_peft_model(model, LoraConfig(r=8, target_modules="all-linear")).train()


def peak(model: nn.Module, batch: dict[str, Tensor]) -> tuple[int, float]:
    """Bytes at the peak of forward and backward pass, and the loss."""
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    with PeakMemory(torch.device("cpu"), [*model.parameters(), *batch.values()]) as memory:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
    return memory.peak_bytes, loss.item()


def main() -> None:
    ids = torch.randint(4000, (8, 128), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": ids}
    model = new_model()
    for name in PRESETS:
        copied = copy.deepcopy(model)
        if name == "plain":
            found = peak(copied, batch)
        else:
            handle = wtacrs.apply_(copied, name)  # after the adapters
            found = peak(copied, batch)
            handle.undo()
        print(f"{name:<12} peak {found[0] / MIB:7.1f} MiB, loss {found[1]:.4f}")
    handle = wtacrs.apply_(model, "leanest", budget=0.3)
    print(handle.report())


if __name__ == "__main__":
    main()
