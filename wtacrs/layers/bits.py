"""Boolean masks of one bit an element, by integer arithmetic that runs on every device.

Eight booleans are eight bytes of 0 or 1, so one 64-bit word. A multiplication gathers their bits
in its highest byte, and another one spreads a byte over a word again.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1 << 20  # elements at a time, or
PARTS = 32  # so many parts: what is unpacked stays small, and so does the number of kernels
GATHER = 0x0102040810204080  # byte j of the word lands in bit 56 + j; no two products meet
SPREAD = 0x0101010101010101  # a byte in each byte of the word
SELECT = 0x8040201008040201 - (1 << 64)  # bit j of byte j, as a signed number


def pack(mask: Tensor) -> Tensor:
    """(...) bool -> (ceil(n / 8),) uint8, n the number of elements."""
    flat = mask.reshape(-1)
    if flat.numel() % 8:
        flat = F.pad(flat, (0, -flat.numel() % 8))
    elif not torch.compiler.is_compiling() and flat.storage_offset() % 8:
        flat = flat.clone()  # words begin at multiples of 8 bytes
    words = flat.view(torch.int64)  # (n / 8,)
    return words.mul(GATHER).bitwise_right_shift_(56).to(torch.uint8)


def unpack(bits: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of ``pack``: (ceil(n / 8),) uint8 -> bool of ``shape``."""
    words = bits.to(torch.int64).mul_(SPREAD).bitwise_and_(SELECT)  # (n / 8,)
    flat = words.view(torch.uint8) != 0  # (n,)
    return flat[: shape.numel()].view(shape)


def scale_kept(values: Tensor, bits: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """``values`` (...) times ``scale`` where the bit is 1, times 0 elsewhere: NaN stays NaN.

    ``out`` may be ``values`` itself, contiguous.
    """
    if out is None:
        out = torch.empty(values.shape, dtype=values.dtype, device=values.device)
    for part, keep, target in _parts(values, bits, out):
        torch.mul(part, keep, out=target).mul_(scale)
    return out


def zero_unkept(values: Tensor, bits: Tensor, out: Tensor | None = None) -> Tensor:
    """``values`` (...) where the bit is 1, 0 elsewhere, whatever the value; ``out`` as above."""
    if out is None:
        out = torch.empty(values.shape, dtype=values.dtype, device=values.device)
    for part, keep, target in _parts(values, bits, out):
        target.copy_(part).masked_fill_(keep.logical_not_(), 0.0)
    return out


def _parts(values: Tensor, bits: Tensor, out: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(part of the values, its mask, part of ``out``), one part after the other."""
    size = max(CHUNK, -(-bits.numel() // PARTS) * 8)
    sources, targets = values.reshape(-1).split(size), out.view(-1).split(size)
    for part, part_bits, target in zip(sources, bits.split(size // 8), targets, strict=True):
        yield part, unpack(part_bits, part.shape), target
