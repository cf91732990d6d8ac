"""A sampler as ``torch.compile`` traces it: the same questions, answered by operators in the graph.

What depends on shapes and on the model's structure is settled while the graph is traced: whether a
layer picks early or late, how many rows, and which layers share a draw. A tensor of the graph is
not told by its identity when the graph runs, for a compiler uses memory again. So a draw is noted
on the traced input itself, which the layers that read it have before them as one object. The note
counts in the trace that made it, as long as the input is not changed in place: layers that are
compiled one by one draw each for itself.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wtacrs.autograd import is_kept
from wtacrs.config import SamplingConfig
from wtacrs.sampling import operators
from wtacrs.sampling.batch import Mask
from wtacrs.sampling.draws import Kept
from wtacrs.sampling.early import SampledRows, compute_dtype
from wtacrs.sampling.select import rows_kept


class TracedPick(NamedTuple):
    """``LatePick`` in a compiled graph."""

    handle: str
    name: str
    t: int
    dtype: torch.dtype
    all_rows: bool

    def __call__(self, x: Tensor, norms: Tensor) -> tuple[Kept, Tensor] | None:
        """What ``choose`` gives for X (n, i) and ||dY_n|| (n,); None for all rows."""
        if self.all_rows:
            return None
        rows, *kept = operators.pick(x, norms, self.handle, self.name, self.dtype, self.t)
        return _kept(kept), rows


class _Shared(NamedTuple):
    """A draw, noted on the input it was made for."""

    sampled: SampledRows
    ticket: Tensor
    when: tuple[int, ...]  # see ``operators.moment``
    readers: list[str]


class TracedSampler:
    """The part of a ``Sampler`` that layers and hooks talk to, for a compiled graph.

    Args:
        handle: of the sampler.
        config: of the sampler.
    """

    def __init__(self, handle: str, config: SamplingConfig) -> None:
        self.handle, self.config = handle, config
        self.recomputed = False  # see ``Sampler.recomputed``

    def start_batch(self, sample_ids: Tensor | None = None, mask: Mask | None = None) -> None:
        """``Sampler.start_batch``, unless it was called for this pass already."""
        if mask is None or isinstance(mask, Tensor):
            operators.begin(self.handle, sample_ids, [] if mask is None else [mask], [])
        else:
            operators.begin(self.handle, sample_ids, [*mask.values()], [*mask.keys()])

    def end_batch(self) -> None:
        """The model returns."""
        operators.end(self.handle)

    def trains(self, model: nn.Module) -> bool:
        """Whether ``model`` is traced for a training pass."""
        return model.training and torch.is_grad_enabled()

    def expects_facts(self, model: nn.Module) -> bool:
        """The same: whether it was told of one, the operator sees."""
        return self.trains(model)

    def picks_late(self, name: str, x: Tensor) -> bool:
        """``Sampler.picks_late``."""
        if torch.compiler.is_compiling() and operators.moment(x.detach()).shape[-1] > 0:
            return True  # inside of a checkpoint
        return self.recomputed or is_kept(x)

    def pick_of(self, name: str, x: Tensor) -> TracedPick:
        """``Sampler.pick_of``."""
        t = x.shape[-2] if x.dim() > 2 else 1
        return TracedPick(self.handle, name, t, compute_dtype(x), self._all_rows(x))

    def sample_rows(self, name: str, x: Tensor) -> SampledRows | None:
        """``Sampler.sample_rows``."""
        if self._all_rows(x):
            return None
        data, dtype = x.detach(), compute_dtype(x)
        when = tuple(operators.moment(data).shape)
        shared: _Shared | None = getattr(x, "wtacrs_draw", None)
        stale = shared is None or shared.when != when or name in shared.readers
        if shared is None or stale or shared.sampled.rows.dtype != dtype:
            rows, *kept, ticket = operators.keep(data, self.handle, name, dtype)
            shared = _Shared(SampledRows(rows, _kept(kept), _nowhere), ticket, when, [])
            x.wtacrs_draw = shared  # type: ignore[attr-defined]
        shared.readers.append(name)
        report = partial(operators.report, handle=self.handle, name=name)
        return shared.sampled._replace(report=report, ticket=shared.ticket)

    def _all_rows(self, x: Tensor) -> bool:
        n = x.shape[:-1].numel()
        return self.config.estimator == "full" or rows_kept(n, self.config.budget) >= n


def _kept(listed: list[Tensor]) -> Kept:
    """Indices, scales, and classes and coordinates where there are any."""
    return Kept(*listed, *[None] * (4 - len(listed)))


def _nowhere(*norms: Any) -> None:
    """A report that nobody takes."""
