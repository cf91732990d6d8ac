"""Where a run computes."""

from __future__ import annotations

import torch


def on_cpu(device: str) -> bool:
    """Whether ``device``, auto or cpu, is the CPU; Apple's GPU is not used: it has no float64."""
    return device == "cpu" or not torch.cuda.is_available()
