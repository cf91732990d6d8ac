"""Other estimates of ||dY_n|| for the first epoch, tried against the mean per token position.

Each keeps a running mean of the squared norm per bucket and layer input, like the library's
positional mean, and differs in what a bucket is. Kept here so that the finding in results/LOG.md
can be run again; the library uses none of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BUCKETS = 128  # as many numbers as the positional mean holds at sequence length 128
MEMORY = 0.9

Inputs = dict[str, Tensor]  # input_ids, attention_mask, labels of a batch


def by_token(inputs: Inputs) -> Tensor:
    """The token id, hashed."""
    return inputs["input_ids"] * 2654435761 % 2**32 % BUCKETS


def by_position_from_both_ends(inputs: Inputs) -> Tensor:
    """The position from the nearer end: closing tokens share a bucket at every length."""
    mask = inputs["attention_mask"]
    position = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    from_end = mask.sum(1, keepdim=True) - 1 - position
    return torch.where(position <= from_end, position, BUCKETS - 1 - from_end).clamp(0, BUCKETS - 1)


def by_position_and_label(inputs: Inputs) -> Tensor:
    """Position and label; a score is a label above or below the batch's mean."""
    labels = inputs["labels"]
    if labels.is_floating_point():
        labels = (labels > labels.mean()).long()
    position = torch.arange(inputs["input_ids"].shape[1], device=labels.device)
    return (labels[:, None] * 64 + position.clamp(max=63)) % BUCKETS


PRIORS: dict[str, Callable[[Inputs], Tensor]] = {
    "token": by_token,
    "both_ends": by_position_from_both_ends,
    "position_label": by_position_and_label,
}


class BucketMeans:
    """Running root mean square of the norms per bucket, for each layer input."""

    def __init__(self, bucket: Callable[[Inputs], Tensor]) -> None:
        self._bucket = bucket
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def observe(self, name: str, inputs: Inputs, norms: Tensor) -> None:
        """Take ||dY_n||, (b * t,), of the batch ``inputs``."""
        buckets = self._bucket(inputs).reshape(-1)
        valid = inputs["attention_mask"].reshape(-1).to(norms.dtype)
        zeros = norms.new_zeros(BUCKETS)
        squares = zeros.index_add(0, buckets, norms.square() * valid)
        counts = zeros.index_add(0, buckets, valid)
        decay = torch.where(counts > 0, MEMORY, 1.0)
        self._sums[name] = decay * self._sums.get(name, zeros) + squares
        self._counts[name] = decay * self._counts.get(name, zeros) + counts

    def estimate(self, name: str, inputs: Inputs) -> Tensor | None:
        """(b * t,), buckets never seen at the mean of all; None before the first batch."""
        if name not in self._sums:
            return None
        sums, counts = self._sums[name], self._counts[name]
        mean = torch.where(counts > 0, sums / counts.clamp(min=1e-30), sums.sum() / counts.sum())
        return mean.sqrt()[self._bucket(inputs).reshape(-1)]
