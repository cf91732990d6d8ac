"""From the backward pass back to the estimates: norms of dY into the history, masks put to proof.

Nothing is read or written while a backward pass runs. Its layers leave ||dY_n|| behind, and the
next forward pass settles them, all inputs of one shape at once.

A masked row that has a gradient is a wrong mask: such rows are never kept, and dW is biased. Which
mask is wrong cannot be told from shapes, but ||dY_n|| tells it in the backward pass for nothing.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from wtacrs.sampling.batch import Reported
from wtacrs.sampling.grad_norms import GradNorms

# Of the largest ||dY_n||: what an additive mask of -20 leaves of a row is no gradient.
NEGLIGIBLE = 1e-6


class History:
    """Takes what backward passes report. ``grad_norms`` gets the norms."""

    def __init__(self, grad_norms: GradNorms) -> None:
        self._grad_norms = grad_norms
        # (layers, largest ||dY_n|| of masked rows over that of all rows, when that is on the host)
        self._leaks: list[tuple[list[str], Tensor, Any]] = []

    def settle(self, reported: list[Reported]) -> None:
        """Take over what layers have reported so far, and empty the list."""
        groups = _alike(reported)
        reported.clear()
        for group in groups:
            self._settle(group)
            for one in group:  # which a forward pass may hold on to
                one.settled = True
                one.norms.clear()

    def _settle(self, group: list[Reported]) -> None:
        rows = group[0].rows
        group = sorted(group, key=lambda one: self._grad_norms.order(one.leader))
        norms = torch.stack([_together(one) for one in group])  # (inputs, n)
        leaders = [one.leader for one in group]
        if rows.mask is not None:
            hidden = 1 - rows.mask.reshape(-1).to(norms.device, norms.dtype)
            largest = norms.amax(1).clamp(min=torch.finfo(norms.dtype).tiny)
            self._expect_zero(leaders, (norms * hidden).amax(1) / largest)
        norms = norms.view(len(group), rows.b, rows.t)
        self._grad_norms.observe(leaders, norms, rows.sample_ids, rows.mask)

    def _expect_zero(self, names: list[str], shares: Tensor) -> None:
        event = None
        if isinstance(shares, FakeTensor):
            return  # a plan, without values
        if shares.is_cuda:
            shares = shares.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._leaks.append((names, shares, event))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_leaks": []}  # events cannot be copied

    def raise_for_leaks(self, wait: bool) -> None:
        """Raise for masks that hid rows with a gradient.

        Args:
            wait: for the device, too; else what is not there yet is looked at next time.

        Raises:
            ValueError: with the layer's name and what to pass instead.
        """
        waiting = []
        for names, shares, event in self._leaks:
            if event is not None and not event.query():
                if not wait:
                    waiting.append((names, shares, event))
                    continue
                event.synchronize()
            for name, share in zip(names, shares.tolist(), strict=True):
                if share > NEGLIGIBLE:  # NaN is an overflow, which AMP's scaler meets
                    self._leaks = []
                    raise ValueError(_message(name, share))
        self._leaks = waiting


def _together(one: Reported) -> Tensor:
    """sqrt(sum_l ||dY_l,n||^2) (n,) over the layers that read one input."""
    norms = [*one.norms.values()]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms), dim=0)


def _message(name: str, share: float) -> str:
    return (
        f"the mask given for {name!r} hides rows that have a gradient (||dY_n|| up to {share:.2g} "
        "of the largest): the last step's weight gradients are biased. A mask must be 0 only for "
        "rows whose gradient is zero, and be that of the rows which this layer reads: batch first; "
        "of the source in an encoder and in the keys and values of a cross-attention, of the "
        "target in a decoder (give a mapping from layer patterns to masks); one start_batch for "
        "each call of the model. Give padding the label -100; where a causal model is padded on "
        "the left, the first token too, since a padding row predicts it. Without a mask "
        "(mask=None) the gradient is unbiased, of a larger variance"
    )


def _alike(reported: list[Reported]) -> list[list[Reported]]:
    """Groups of one mask, shape and ids, in which no input comes twice (a layer called twice)."""
    groups: dict[Any, list[Reported]] = defaultdict(list)
    calls: dict[str, int] = defaultdict(int)
    for one in reported:
        rows = one.rows
        device = next(iter(one.norms.values())).device
        ids = rows.sample_ids is None
        key = id(rows.mask), ids, rows.b, rows.t, calls[one.leader], device
        groups[key].append(one)
        calls[one.leader] += 1
    return [*groups.values()]
