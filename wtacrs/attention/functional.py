"""The pieces of attention, as tensor functions."""

from __future__ import annotations

import torch
from torch import Tensor


def probabilities(q: Tensor, k: Tensor, scaling: float, biases: list[Tensor]) -> Tensor:
    """softmax(Q K^T * scaling + biases): (b, h, t, d), (b, h, s, d) -> (b, h, t, s)."""
    scores = (q @ k.transpose(-1, -2)).mul_(scaling)
    for bias in biases:
        scores = scores + bias if bias.dtype != scores.dtype else scores.add_(bias)
    return scores.softmax(-1)


def keep_mask(shape: torch.Size, p: float, device: torch.device) -> Tensor:
    """Which elements dropout keeps; on the CPU what ``F.dropout`` would draw."""
    keep = torch.empty(shape, dtype=torch.bool, device=device)
    return keep.fill_(False) if p == 1 else keep.bernoulli_(1 - p)


def part_of(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Samples ``start`` to ``stop`` of a tensor whose first dimension may be broadcast."""
    return tensor if tensor.shape[0] == 1 else tensor[start:stop]
