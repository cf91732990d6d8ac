"""What a compiler must neither look into nor do twice, as operators that it takes as they are.

Facts of the batch, draws and reports read Python state or a generator. ``torch.compile`` can trace
neither, and would take what it sees once for a constant. So in a compiled graph they are custom
operators: a fake kernel tells the shapes, which follow from those of the input alone, and the real
one runs the same code as without a compiler, once where it stands: the operators are registered as
ordered effects, which are never merged, dropped, swapped or computed again.

An operator takes tensors and plain values only, so it is told a sampler by its handle.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch._guards import CompileContext
from torch._higher_order_ops.effects import _EffectType, _register_effectful_op
from torch._higher_order_ops.wrap import tag_activation_checkpoint
from torch.library import custom_op

from wtacrs.sampling.batch import Facts
from wtacrs.sampling.centre import CLASSES
from wtacrs.sampling.draws import Kept
from wtacrs.sampling.select import rows_kept

if TYPE_CHECKING:
    from wtacrs.sampling.sampler import Sampler

_HANDLES = count()
_SAMPLERS: WeakValueDictionary[str, Sampler] = WeakValueDictionary()

_LIST = "-> Tensor[]"
_LAYER = "str handle, str name, ScalarType dtype"


def handle_of(sampler: Sampler) -> str:
    """A handle by which the operators find ``sampler`` as long as it lives."""
    handle = str(next(_HANDLES))
    _SAMPLERS[handle] = sampler
    return handle


def _effect(schema: str) -> Any:
    """Decorator: the operator ``wtacrs::<function's name>``, which is an ordered effect."""

    def register(function: Any) -> Any:
        name = function.__name__
        operator = custom_op(f"wtacrs::{name}", function, mutates_args=(), schema=schema)
        _register_effectful_op(getattr(torch.ops.wtacrs, name).default, _EffectType.ORDERED)
        return operator

    return register


@_effect("(str handle, Tensor? sample_ids, Tensor[] masks, str[] patterns) -> ()")
def begin(handle: str, sample_ids: Tensor | None, masks: list[Tensor], patterns: list[str]) -> None:
    """``Sampler.start_batch``, unless it was called. A mask without a pattern is for all."""
    named = dict(zip(patterns, masks, strict=True)) if patterns else None
    _SAMPLERS[handle].begin_batch(Facts(sample_ids, named or (masks[0] if masks else None)))


@_effect("(str handle) -> ()")
def end(handle: str) -> None:
    """The model returns."""
    _SAMPLERS[handle].end_batch()


@_effect(f"(Tensor x, {_LAYER}) {_LIST}")
def keep(x: Tensor, handle: str, name: str, dtype: torch.dtype) -> list[Tensor]:
    """What is kept of ``x`` (..., i) for the backward pass, and a ticket for ``report``."""
    sampler = _SAMPLERS[handle]
    drawn, rows = sampler.draw(name, x, dtype)
    return [*_listed(drawn.kept, rows), torch.tensor(sampler.passes.ticket(drawn.reported))]


@keep.register_fake
def _(x: Tensor, handle: str, name: str, dtype: torch.dtype) -> list[Tensor]:
    classes = CLASSES if x.dim() > 2 and x.shape[-2] >= CLASSES else 1
    like = _kept_like(_SAMPLERS[handle], x.reshape(-1, x.shape[-1]), classes, dtype, torch.float32)
    return [*like, torch.empty((), dtype=torch.int64)]


@_effect(f"(Tensor x, Tensor norms, {_LAYER}, int t) {_LIST}")
def pick(
    x: Tensor, norms: Tensor, handle: str, name: str, dtype: torch.dtype, t: int
) -> list[Tensor]:
    """What ``LatePick`` gives for X (n, i) and ||dY_n|| (n,)."""
    sampler = _SAMPLERS[handle]
    sampler.late.add(name)
    picked = sampler.late_pick(name, x.device, t, dtype)(x, norms)
    assert picked is not None  # not all rows: then it would not have been called
    return _listed(*picked)


@pick.register_fake
def _(x: Tensor, norms: Tensor, handle: str, name: str, dtype: torch.dtype, t: int) -> list[Tensor]:
    classes = CLASSES if t >= CLASSES else 1
    return _kept_like(_SAMPLERS[handle], x, classes, dtype, norms.dtype)


@_effect("(Tensor norms, Tensor ticket, str handle, str name) -> ()")
def report(norms: Tensor, ticket: Tensor, handle: str, name: str) -> None:
    """Takes ||dY_n|| (n,) of the layer ``name``, whose rows were kept under ``ticket``."""
    sampler = _SAMPLERS[handle]
    sampler.late.discard(name)
    sampler.rows_seen += len(norms)
    sampler.rows_kept += rows_kept(len(norms), sampler.config.budget)
    if (reported := sampler.passes.of_ticket(int(ticket))) is not None:
        reported.take(name, norms)


@custom_op("wtacrs::moment", mutates_args=())
def moment(x: Tensor) -> Tensor:
    """Its shape says when it is traced: (changes of ``x`` in place, trace, its repetition, is it
    within a checkpoint). A compiler knows that, but of shapes only may Python code ask for it."""
    return x.new_empty(0, 0, 0, 0)


@moment.register_fake
def _(x: Tensor) -> Tensor:
    trace = CompileContext.current_compile_id()
    frame, again = (0, 0) if trace is None else (trace.frame_id or 0, trace.frame_compile_id or 0)
    return x.new_empty(x._version, 1 + frame, 1 + again, int(_in_checkpoint()))


def _in_checkpoint() -> bool:
    """Whether what is traced is computed again in the backward pass. torch has no public question
    for it, and computes no effect again."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        tracer: Any = InstructionTranslator.current_tx().output.current_tracer
    except AttributeError:  # traced by others, who ask for a shape and not for the moment
        return False
    while tracer is not None:
        if tracer.source_target is tag_activation_checkpoint:
            return True
        tracer = tracer.parent
    return False


for _silent in (begin, end, report):
    _silent.register_fake(lambda *arguments: None)


def _kept_like(
    sampler: Sampler, x: Tensor, c: int, dtype: torch.dtype, norms: torch.dtype
) -> list[Tensor]:
    """Of X (n, i) with c classes and norms of dY in the dtype ``norms``, what ``_listed`` gives."""
    (n, i), centring = x.shape, sampler.centring
    k = rows_kept(n, sampler.config.budget)
    q = centring.size(n, i, c, k)
    k -= centring.cost(n, i, q)
    scales = torch.promote_types(x.dtype, norms)
    like = [
        x.new_empty(k + q, i, dtype=dtype),
        x.new_empty(k, dtype=torch.int64),
        x.new_empty(k, dtype=scales),
    ]
    if q > 0:
        like.append(x.new_empty(n, c, dtype=norms))
    if q > 0 and centring.rank > 0:
        like.append(x.new_empty(n, centring.rank, dtype=dtype))
    return like


def _listed(kept: Kept, rows: Tensor) -> list[Tensor]:
    """rows, indices, scales, classes and coordinates, the last two where there are any, in storage
    of their own: a compiler may write over it."""
    scales = kept.scales.contiguous()
    given = [rows, kept.indices, scales]
    if kept.classes is not None:
        given.append(kept.classes.clone())
    return [*given, kept.coordinates] if kept.coordinates is not None else given
