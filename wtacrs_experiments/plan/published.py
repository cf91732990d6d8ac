"""What is planned for the paper's Table 2, the memory figures and decoders, and kept as records.

    python -m wtacrs_experiments.plan.published table2 --records results/plan

table2: a step of T5-Base and T5-Large under each method, batch 100, 128 tokens, float32, AdamW,
dropout 0.1, targets of 2 tokens. batches: the largest batch in 24, 40 and 80 GiB of T5-Large and
T5-3B, with parameters, gradients and optimizer state in bf16. decoders: a step of decoders of today
in bf16, at three sizes of batch.

What has a record is planned again only if the code has changed that made it, or with --overwrite.
An index beside the records says which of them is which row; reports read that.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from wtacrs_experiments.errors import one_line
from wtacrs_experiments.plan.kept import kept, planned_batches, planned_step
from wtacrs_experiments.records.planned import FULL, index_path
from wtacrs_experiments.records.store import write_json

METHODS = {  # names of the paper's rows as the paper has them; full attends as its code does
    FULL: ("memory=plain", "memory.attention=eager"),
    "LoRA": ("memory=plain", "memory.attention=eager", "tuning=lora"),
    "LST": ("memory=plain", "memory.attention=eager", "tuning=lst"),
    "WTA-CRS@0.3": ("memory=paper", "budget=0.3"),
    "WTA-CRS@0.1": ("memory=paper", "budget=0.1"),
    "LoRA+WTA-CRS@0.3": ("memory=paper", "budget=0.3", "tuning=lora"),
    "LoRA+WTA-CRS@0.1": ("memory=paper", "budget=0.1", "tuning=lora"),
    "Full, sdpa": ("memory=plain", "memory.attention=sdpa"),
    "checkpoint": ("memory=checkpoint",),
    "lean@0.3, nothing recomputed": ("memory=lean", "memory.recompute=none", "budget=0.3"),
    "lean@0.1, nothing recomputed": ("memory=lean", "memory.recompute=none", "budget=0.1"),
    "lean@0.3": ("memory=lean", "budget=0.3"),
    "lean@0.1": ("memory=lean", "budget=0.1"),
    "leanest@0.3": ("memory=leanest", "budget=0.3"),
    "leanest@0.1": ("memory=leanest", "budget=0.1"),
    "LoRA+lean@0.3": ("memory=lean", "budget=0.3", "tuning=lora"),
    "LoRA+lean@0.1": ("memory=lean", "budget=0.1", "tuning=lora"),
    "LoRA+checkpoint": ("memory=checkpoint", "tuning=lora"),
    "LoRA+leanest@0.3": ("memory=leanest", "budget=0.3", "tuning=lora"),
}
STEP_SIZE = ("batch_size=100", "max_length=128", "target_length=2", "precision=fp32", "device=cuda")
STEP_MODELS = {"T5-Base": "t5_base", "T5-Large": "t5_large"}
BATCH_METHODS = (
    *(FULL, "LoRA", "checkpoint", "WTA-CRS@0.3", "LoRA+WTA-CRS@0.1"),
    *("lean@0.3", "LoRA+lean@0.1", "leanest@0.3"),
)
BATCH_SIZE = ("batch_size=32", "max_length=128", "target_length=2", "precision=bf16", "device=cuda")
BATCH_MODELS = {"T5-Large": "t5_large", "T5-3B": "t5_3b"}
FITS = ("24GiB", "40GiB", "80GiB")


DECODERS = {
    **{"Llama-3.2-1B": "llama_1b", "Qwen3-0.6B": "qwen3_600m"},
    **{"Gemma-3-1B": "gemma3_1b", "Mixtral-2B": "mixtral_2b"},
}
DECODER_SIZES = {
    f"{batch} × {tokens:,}": (f"batch_size={batch}", f"max_length={tokens}")
    for batch, tokens in ((1, 1024), (8, 1024), (1, 8192))
}
DECODER_METHODS = {
    FULL: ("memory=plain",),
    "checkpoint": ("memory=checkpoint",),
    "checkpoint, our loss": ("memory=checkpoint", "memory.lossless=[loss]"),
    "lean@0.3": ("memory=lean", "budget=0.3"),
    "leanest@0.3": ("memory=leanest", "budget=0.3"),
    "leanest@0.1": ("memory=leanest", "budget=0.1"),
    "LoRA": ("memory=plain", "tuning=lora"),
    "LoRA+checkpoint": ("memory=checkpoint", "tuning=lora"),
    "LoRA+checkpoint, our loss": ("memory=checkpoint", "memory.lossless=[loss]", "tuning=lora"),
    "LoRA+lean@0.3": ("memory=lean", "budget=0.3", "tuning=lora"),
    "LoRA+leanest@0.3": ("memory=leanest", "budget=0.3", "tuning=lora"),
}


def rows(name: str) -> dict[str, dict[str, tuple[str, ...]]]:
    """Model -> method -> overrides, of ``table2``, ``batches`` or ``decoders``."""
    if name == "decoders":
        return _of_decoders()
    of_step = (STEP_MODELS, METHODS, STEP_SIZE)
    models, methods, size = (
        of_step if name == "table2" else (BATCH_MODELS, BATCH_METHODS, BATCH_SIZE)
    )
    return {
        title: {method: (f"model={model}", *size, *METHODS[method]) for method in methods}
        for title, model in models.items()
    }


def _of_decoders() -> dict[str, dict[str, tuple[str, ...]]]:
    """A "model" is one at a size: its full row is what the others of that size are held against."""
    found = {}
    for title, model in DECODERS.items():
        for size, given in DECODER_SIZES.items():
            common = (f"model={model}", *given, "precision=bf16", "device=cuda")
            found[f"{title}, {size}"] = {
                method: (*common, *own) for method, own in DECODER_METHODS.items()
            }
    return found


def publish(name: str, find: Callable[[tuple[str, ...]], Path | None], folder: Path) -> int:
    """Find or plan each row of ``name`` and write the index; returns how many rows have none."""
    found = {
        model: {method: find(overrides) for method, overrides in methods.items()}
        for model, methods in rows(name).items()
    }
    index = {
        model: {method: path.name for method, path in methods.items() if path is not None}
        for model, methods in found.items()
    }
    write_json(index, index_path(folder, name))
    return sum(path is None for methods in found.values() for path in methods.values())


@one_line(interrupted="interrupted; what is planned is kept, the same command goes on")
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m wtacrs_experiments.plan.published",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("table2", "batches", "decoders"))
    parser.add_argument("--records", type=Path, default=Path("outputs/plan"))
    parser.add_argument("--overwrite", action="store_true", help="plan again what has a record")
    parser.add_argument("--recorded", action="store_true", help="plan nothing: index what is there")
    options = parser.parse_args(arguments)
    kind = "batches" if options.what == "batches" else "step"

    def find(overrides: tuple[str, ...]) -> Path | None:
        if kind == "step" and not options.recorded:
            planned_step(overrides, options.records, options.overwrite)
        elif not options.recorded:
            planned_batches(overrides, FITS, options.records, options.overwrite)
        return kept(kind, overrides, options.records)

    missing = publish(options.what, find, options.records)
    print(f"{index_path(options.records, options.what)}: {missing} rows without a record")
    return 0


if __name__ == "__main__":
    sys.exit(main())
