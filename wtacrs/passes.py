"""The two passes of a part that is recomputed: what the first one saves, where the second ends.

The second pass ends at the last linear layer, adapter, experts or whole feed-forward sublayer: what
comes after it is saved in the first pass as if nothing were recomputed (one bit an element of a
dropout; the output of a norm, which is the next block's input anyway). So the products of that
layer, whose values no gradient needs (``products``), are not computed again, by construction: torch
stops a second pass once everything is there that the first one left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from wtacrs.attention.kept import OutputsMemo
from wtacrs.experts import SampledExperts
from wtacrs.layers.feed_forward import ChunkedForward
from wtacrs.layers.masks import DrawsMemo, may_draw
from wtacrs.layers.products import Verdicts, in_vain, last_linear, left_out, own_forward
from wtacrs.sampling.linear import SampledLinear
from wtacrs.sampling.sampler import Sampler
from wtacrs.swap import attends


class Part(NamedTuple):
    """What both passes of a part need to know of it.

    Attributes:
        samplers: of its sampled layers outside of feed-forward sublayers.
        last: where the second pass can end, in the order of registration, and
        in_vain: those of its layers (or itself) whose products no gradient needs.
        memo: draws before it.
        outputs: of its attentions, if these are kept.
    """

    samplers: set[Sampler]
    last: nn.Module | None
    in_vain: list[Any]
    memo: DrawsMemo
    outputs: OutputsMemo


def part_of(module: nn.Module, keeps_draws: bool, output_share: float, verdicts: Verdicts) -> Part:
    """``output_share`` is of attention; ``verdicts`` has what was found of each kind of adapter."""
    forwards = [layer.__dict__.get("forward") for layer in module.modules()]
    chunked = {run.module: run for run in forwards if isinstance(run, ChunkedForward)}
    experts = {
        run.module: run for run in forwards if isinstance(run, SampledExperts) and run.weighs_before
    }
    units: dict[nn.Module, Any] = {**chunked, **experts}
    inside = {layer for run in chunked.values() for layer in run.modules()}
    outside = [layer for layer in module.modules() if layer not in inside]
    samplers = samplers_of(outside)
    candidates = (m for m in module.modules() if m not in inside or m in chunked)
    last = last_linear(candidates, units)
    useless = [units[last]] if last in units else in_vain(last, verdicts)
    # Where nothing is sampled, or not the last layer, the end is not made to keep little either.
    if not (samplers or chunked) or (type(last) is nn.Linear and not useless):
        last = None
    drawing = [m for m in outside if keeps_draws and may_draw(m)]
    attending = [m for m in outside if output_share and attends(m)]
    outputs = OutputsMemo(attending, output_share, module)
    return Part(samplers, last, useless, DrawsMemo(drawing), outputs)


def samplers_of(layers: Iterable[nn.Module]) -> set[Sampler]:
    owners = [o for layer in layers for o in (layer, layer.__dict__.get("forward"))]
    return {o.sampler for o in owners if isinstance(o, (SampledLinear, SampledExperts))}


@contextmanager
def picking_late(samplers: Iterable[Sampler]) -> Iterator[None]:
    with ExitStack() as stack:
        for sampler in samplers:
            stack.enter_context(sampler.recomputed())
        yield


@contextmanager
def _late(part: Part, replays: bool) -> Iterator[None]:
    with picking_late(part.samplers), part.memo.used(replays), part.outputs.used(replays):
        yield


@contextmanager
def _ending(part: Part, product: bool, when_done: Callable[[], None]) -> Iterator[None]:
    """The last layer leaves products out unless ``product``, and tells when it is done."""
    if (last := part.last) is None:
        yield
        return
    with left_out(part.in_vain, product):
        plain = last.__dict__.get("forward") or partial(type(last).forward, last)

        def forward(*args: Any, **kwargs: Any) -> Any:
            output = plain(*args, **kwargs)
            when_done()
            return output

        with own_forward(last, forward):
            yield


def first_pass(part: Part) -> AbstractContextManager[None]:
    """What runs after the last layer of ``part`` is saved as it would be without recomputation: by
    the hooks that are there now, say of offloading, if any."""
    there: Any = torch._C._autograd._top_saved_tensors_default_hooks(True)
    part.outputs.hooks = hooks = there or (_detached, _as_it_is)
    return _saving_after(part, hooks)


@contextmanager
def _saving_after(part: Part, hooks: Any) -> Iterator[None]:
    # Autocast's cache is off, for it would hold what this pass does not keep: a copy of each
    # weight, until the model returns.
    caches = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with ExitStack() as stack, _late(part, replays=False):

            def save() -> None:
                part.memo.end()
                stack.enter_context(saved_tensors_hooks(*hooks))

            with _ending(part, True, save):
                yield
    finally:
        torch.set_autocast_cache_enabled(caches)


class SecondPass:
    """A graph that is retained has several second passes, so this is entered several times."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._stack = ExitStack()

    def _save(self) -> None:
        # Reached only with early stop switched off; what is saved from here on, nobody asks for.
        self._part.memo.end()
        self._stack.enter_context(saved_tensors_hooks(_detached, _as_it_is))

    def __enter__(self) -> None:
        self._stack.enter_context(_late(self._part, replays=True))
        self._stack.enter_context(_ending(self._part, False, self._save))

    def __exit__(self, *error: Any) -> None:
        self._stack.close()


def _detached(x: Tensor) -> Tensor:
    """What is saved instead: a node that held its own output would never be freed."""
    return x.detach()


def _as_it_is(x: Tensor) -> Tensor:
    return x
