"""The layer: an ``nn.Linear`` that samples its input while training, early or late."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wtacrs.sampling.early import SampledLinearFunction
from wtacrs.sampling.late import LateLinearFunction

if TYPE_CHECKING:
    from wtacrs.sampling.sampler import Sampler


class SampledLinear(nn.Linear):
    """A linear layer that samples its input while training.

    Made by ``sample_linears_`` from an ``nn.Linear``, or from a layer that computes the same in its
    own way (transformers' Conv1D, whose weight is W^T). In eval mode, without grad, or with a
    frozen weight it computes what that layer does, bit for bit. Else it keeps k rows of its input
    for the weight gradient; where the input is there in the backward pass anyway, it picks them
    then.

    Raises:
        RuntimeError: in the forward pass of a replica of ``nn.DataParallel``.
    """

    sampler: Sampler
    name: str  # the layer's qualified name in the model
    plain: type[nn.Module] = nn.Linear  # what it is made from
    transposed: bool = False  # whether its weight is W^T (i, o)
    without_product: bool = False  # set in a second pass where nothing reads the output's value

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled() and self.weight.requires_grad):
            return self.plain.forward(self, input)
        if getattr(self, "_is_replica", False):
            raise RuntimeError(
                "nn.DataParallel runs replicas of the sampled layers in threads that share one "
                "sampler, which would mix their batches; use one process per device (torchrun, "
                "DistributedDataParallel), or make one device visible (CUDA_VISIBLE_DEVICES=0)"
            )
        sampler, weight = self.sampler.side, self.weight.T if self.transposed else self.weight
        if sampler.picks_late(self.name, input):
            pick = sampler.pick_of(self.name, input)
            product = not self.without_product
            return LateLinearFunction.apply(input, weight, self.bias, pick, product)
        sampled = sampler.sample_rows(self.name, input)
        if sampled is None:
            return F.linear(input, weight, self.bias)
        return SampledLinearFunction.apply(input, weight, self.bias, sampled)

    def extra_repr(self) -> str:
        config = self.sampler.config
        return f"{super().extra_repr()}, estimator={config.estimator}, budget={config.budget}"
