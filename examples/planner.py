"""What a step will take, before it is launched: python examples/planner.py.

The step is rehearsed on fake tensors: no weights, no GPU. Here from Python; the same from a shell
is python run.py mode=plan -m model=bert_base memory=plain,checkpoint,lean,leanest.
"""

from __future__ import annotations

from wtacrs_experiments.config import PlanConfig, compose
from wtacrs_experiments.plan.search import plan

GIB = 2**30
STEP = ("model=bert_base", "batch_size=32", "max_length=128", "precision=bf16", "device=cuda")
PRESETS = ("plain", "checkpoint", "lean", "leanest")


def main() -> None:
    print("BERT-Base, 32 x 128 tokens, bf16, planned for CUDA")
    for memory in PRESETS:
        found = plan(compose(PlanConfig, [*STEP, f"memory={memory}"]))
        print(
            f"{memory:<12} peak {found.peak_bytes / GIB:5.2f} GiB, saved "
            f"{found.saved_bytes / GIB:5.2f} GiB, operations {found.relative_flops:.2f} of plain's"
        )


if __name__ == "__main__":
    main()
