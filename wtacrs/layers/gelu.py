"""GELU whose derivative is kept in 8 bits, rounded at random so that its mean is exact.

The plain layer keeps its input (4 bytes an element in float32) and computes the derivative in the
backward pass. Here the derivative is computed in the forward pass and rounded to one of 256 levels
over its range, up with the probability of the fractional part: E[rounded] = derivative. The
gradient is unbiased, with a standard deviation of at most half a level, 0.0025, an element.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wtacrs.autograd import first_order
from wtacrs.randomness import Randomness

LOW, HIGH = -0.1295, 1.1295  # the derivative lies between -0.1290 and 1.1290
LEVEL = (HIGH - LOW) / 255
CHUNK = 1 << 20  # elements at a time: temporaries stay small and in the cache


def round_at_random(values: Tensor, generator: torch.Generator) -> Tensor:
    """Levels (uint8) whose mean over the generator is ``values``, which lie in [LOW, HIGH]."""
    noise = torch.rand(values.shape, device=values.device, generator=generator)
    return values.sub(LOW).div_(LEVEL).add_(noise).floor_().to(torch.uint8)


class RoundedGELUFunction(torch.autograd.Function):
    """GELU of x (...); keeps one byte an element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, generator: torch.Generator) -> Tensor:
        levels = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
        # NaN where an element is no finite number, which no level can say.
        low = torch.full((), LOW, dtype=torch.float32, device=x.device)
        flat = x.reshape(-1)
        for part, level in zip(flat.split(CHUNK), levels.view(-1).split(CHUNK), strict=True):
            part = part.float()
            values = torch.ops.aten.gelu_backward(torch.ones_like(part), part)
            low += 0 * values.sum()
            level.copy_(round_at_random(values, generator))
        ctx.save_for_backward(levels, low)
        return F.gelu(x)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        levels, low = ctx.saved_tensors
        dx = torch.empty(dy.shape, dtype=dy.dtype, device=dy.device)
        parts = (x.view(-1).split(CHUNK) for x in (levels, dx))
        for part, level, target in zip(dy.reshape(-1).split(CHUNK), *parts, strict=True):
            # In float32: 256 levels are more than bfloat16 tells apart.
            target.copy_(level.float().mul_(LEVEL).add_(low).mul_(part))
        return dx, None


class RoundedGELU(nn.Module):
    """An exact GELU with an unbiased derivative of 8 bits; the class of a swapped GELU."""

    rounding: Randomness
    plain_class: type[nn.Module]

    def forward(self, input: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and input.requires_grad):
            return self.plain_class.forward(self, input)
        return RoundedGELUFunction.apply(input, self.rounding.generator(input.device))
