"""Linear layers of many experts in one (e, o, i) weight, which keep sampled rows of their input.

The rows X (s, i), one for each token and expert that it is sent to, lie sorted by expert. With E
the rows of expert e, and W_e its weight,

    Y_n  = X_n W_e^T          forward, exact
    dX_n = dY_n W_e           backward, exact
    dW_e = sum_{n in E} dY_n (x) X_n    backward, estimated from the rows of E that are kept

All experts share one draw of k rows: its size is known from the shape, and no expert waits for the
host. Within the rows of each expert the weights are normalised to the number of these rows, so that
each keeps the same share of its own, on average, however small its gradient is beside the others'.
The price is that how many an expert keeps is random; one that keeps none has the gradient 0 in that
step. The estimate is unbiased for each. A row that is not kept costs no memory, and its part of the
product no time.

Source: arXiv 2305.15265, Algorithm 1, for each expert.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from wtacrs.autograd import first_order
from wtacrs.sampling.draws import Kept, LatePick
from wtacrs.sampling.early import left_side, right_side
from wtacrs.sampling.weights import even_floor, floored, row_norms

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of torch's grouped product
LEAST_CAPABILITY = (8, 0)  # of a CUDA device that has it


class Groups(NamedTuple):
    """Which rows belong to which expert."""

    of: Tensor  # (s,) the expert of each row, ascending
    ends: Tensor  # (e,) int32: where the rows of each expert end


class KeptRows(NamedTuple):
    """Rows picked in the forward pass, sorted by expert."""

    rows: Tensor  # (k, i)
    kept: Kept
    ends: Tensor  # (e,) int32: where those of each expert end


class Referred(NamedTuple):
    """An input that is kept whole, of which rows are picked in the backward pass."""

    source: Tensor  # (n, i)
    token: Tensor | None  # (s,) the row of ``source`` that each row is; None for the same
    pick: LatePick | None  # None for all rows


def by_expert(experts: Tensor, count: int) -> tuple[Groups, Tensor]:
    """The rows by their ``experts`` (s,) sorted, and where each of them was."""
    of, order = experts.sort(stable=True)
    ends = torch.searchsorted(of, torch.arange(count, device=of.device), right=True)
    return Groups(of, ends.to(torch.int32)), order


# An operator, for on fake tensors torch's own takes bfloat16 alone.
@custom_op("wtacrs::grouped_product", mutates_args=())
def grouped_product(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """(s, i), (e, i, o) -> (s, o) of rows by their expert; (i, s), (s, o) -> (e, i, o) of sums."""
    if _has_kernel(a):
        return F.grouped_mm(a, b, offs=ends)
    stops: list[int] = ends.tolist()
    spans = [slice(*span) for span in zip([0, *stops], stops, strict=False)]
    if b.dim() == 3:
        return torch.cat([a[span] @ w for span, w in zip(spans, b, strict=True)])
    return torch.stack([a[:, span] @ b[span] for span in spans])


@grouped_product.register_fake
def _(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    return (
        a.new_empty(len(a), b.shape[2])
        if b.dim() == 3
        else a.new_empty(len(ends), len(a), b.shape[1])
    )


def _has_kernel(a: Tensor) -> bool:
    if not hasattr(F, "grouped_mm") or a.dtype not in KERNEL_DTYPES:
        return False
    return not a.is_cuda or torch.cuda.get_device_capability(a.device) >= LEAST_CAPABILITY


def within_groups(weights: Tensor, groups: Groups) -> Tensor:
    """Weights (s,) of which those of each expert sum to the number of its rows of weight > 0."""
    lengths = groups.ends.diff(prepend=groups.ends.new_zeros(1))  # (e,)
    # Sums of their own, in double: beside another expert's, those of tiny weights would be lost.
    both = torch.stack([weights.double(), (weights > 0).double()], 1)  # (s, 2)
    sums = torch.segment_reduce(both, "sum", lengths=lengths, unsafe=True)  # (e, 2)
    mass, rows = sums.unbind(1)
    share = rows / mass.clamp(min=torch.finfo(torch.float64).tiny)
    return (weights * share[groups.of]).to(weights.dtype)


def keep_rows(
    x: Tensor, guess: Tensor | None, groups: Groups, pick: LatePick, floor: float
) -> KeptRows | None:
    """Pick rows of ``x`` (s, i) in the forward pass; None if all would be kept.

    Args:
        guess: (s,), what is known of ||dY_n||, up to a factor for each expert; None for nothing.
    """
    norms = row_norms(x)
    weights = within_groups(norms if guess is None else norms * guess, groups)
    even = even_floor(torch.ones((), device=x.device).expand(len(x)), floor)
    if (kept := pick.rows(floored(weights, even, floor))) is None:
        return None
    kept, ends = _sorted(kept, groups)
    return KeptRows(x.index_select(0, kept.indices), kept, ends)


def _sorted(kept: Kept, groups: Groups) -> tuple[Kept, Tensor]:
    indices, order = kept.indices.sort()
    ends = torch.searchsorted(indices, groups.ends.long()).to(torch.int32)
    return Kept(indices, kept.scales[order], None, None), ends


class GroupedLinearFunction(torch.autograd.Function):
    """The linear layers of all experts, with dW from the rows that are kept or referred to.

    ``product`` as in ``LateLinearFunction``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (s, i)
        weight: Tensor,  # (e, o, i), or (e, i, o) if transposed
        transposed: bool,
        groups: Groups,
        memory: KeptRows | Referred,
        product: bool = True,
    ) -> Tensor:
        ctx.transposed, ctx.pick = transposed, None
        ctx.late = isinstance(memory, Referred)
        held: tuple[Tensor | None, ...] = ()
        if ctx.needs_input_grad[1] and isinstance(memory, Referred):
            ctx.pick, held = memory.pick, (memory.source, memory.token)
        elif ctx.needs_input_grad[1] and isinstance(memory, KeptRows):
            held = (memory.rows, memory.ends, *memory.kept[:2])
        ctx.save_for_backward(weight if ctx.needs_input_grad[0] else None, *groups, *held)
        weight = weight if transposed else weight.mT  # (e, i, o)
        if product:
            return grouped_product(x, weight, groups.ends)
        return x.new_zeros(()).expand(len(x), weight.shape[2])

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        weight, of, ends, *held = ctx.saved_tensors
        dx = dw = None
        dy = dy.contiguous()  # as the grouped product wants it
        if ctx.needs_input_grad[0]:
            dx = grouped_product(dy, weight.mT if ctx.transposed else weight, ends)  # (s, i)
        if ctx.needs_input_grad[1]:
            with torch.autocast(dy.device.type, enabled=False):
                if ctx.late:
                    source, token = held
                    picked = _picked_now(dy, source, token, Groups(of, ends), ctx.pick)
                    left, right, ends = picked
                else:
                    rows, ends, indices, scales = held
                    kept = Kept(indices, scales, None, None)
                    left, right = left_side(dy, kept, row_norms(dy)), right_side(rows, kept)
                a, b = (right, left) if ctx.transposed else (left, right)
                dw = grouped_product(a.T, b, ends)
        return dx, dw, None, None, None, None


def _picked_now(
    dy: Tensor, source: Tensor, token: Tensor | None, groups: Groups, pick: LatePick | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Left (k, o) and right (k, i) side of the product, and where the experts' rows end in them."""
    kept = None
    if pick is not None:
        norms = row_norms(source)  # (n,)
        norms = norms if token is None else norms[token]
        kept = pick.rows(within_groups(norms * row_norms(dy), groups))
    if kept is None:
        return dy, (source if token is None else source[token]).to(dy.dtype), groups.ends
    kept, ends = _sorted(kept, groups)
    at = kept.indices if token is None else token[kept.indices]
    rows = source.index_select(0, at).to(dy.dtype)
    return left_side(dy, kept, None), right_side(rows, kept), ends
