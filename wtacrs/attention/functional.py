"""The pieces of attention, as tensor functions."""

from __future__ import annotations

import torch
from torch import Tensor


def probabilities(
    q: Tensor, k: Tensor, scaling: float, biases: list[Tensor], causal_from: int | None = None
) -> Tensor:
    """softmax(Q K^T * scaling + biases): (b, h, t, d), (b, h, s, d) -> (b, h, t, s).

    A bias of booleans says where to attend. ``causal_from`` is the position of the first of the t
    queries, if each attends to what is not after it.
    """
    scores = (q @ k.transpose(-1, -2)).mul_(scaling)
    least = torch.finfo(scores.dtype).min
    for bias in biases:
        if bias.dtype == torch.bool:
            scores.masked_fill_(bias.logical_not(), least)
        else:
            scores = scores + bias if bias.dtype != scores.dtype else scores.add_(bias)
    if causal_from is not None:
        after = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device)
        scores.masked_fill_(after.triu_(causal_from + 1), least)
    return scores.softmax(-1)


def keep_mask(shape: torch.Size, p: float, device: torch.device) -> Tensor:
    """Which elements dropout keeps; on the CPU what ``F.dropout`` would draw."""
    keep = torch.empty(shape, dtype=torch.bool, device=device)
    return keep.fill_(False) if p == 1 else keep.bernoulli_(1 - p)


def part_of(tensor: Tensor, part: tuple[slice, ...]) -> Tensor:
    """``part`` of a tensor whose first dimensions may be broadcast."""
    return tensor[
        tuple(slice(None) if n == 1 else one for n, one in zip(tensor.shape, part, strict=False))
    ]


def for_each_head(x: Tensor, heads: int) -> Tensor:
    """(b, h / groups, s, d) -> (b, h, s, d)."""
    groups = heads // x.shape[1]
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def of_each_group(x: Tensor, groups: int) -> Tensor:
    """(b, h, s, d) -> (b, h / groups, s, d), the sums."""
    return x if groups == 1 else x.unflatten(1, (-1, groups)).sum(2)
