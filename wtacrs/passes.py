"""The two passes of a part that is recomputed: what the first one saves, where the second ends.

The second pass ends at the last layer that keeps something of its own, a sampled one or a whole
feed-forward sublayer: what comes after it is saved in the first pass as if nothing were recomputed
(one bit an element of a dropout; the output of a norm, which is the next block's input anyway). So
the product of that layer, whose value no gradient needs, is not computed again, by construction:
torch stops a second pass once everything is there that the first one left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from wtacrs.layers.feed_forward import ChunkedForward
from wtacrs.layers.masks import DrawsMemo, may_draw
from wtacrs.sampling.linear import SampledLinear


class KeepingLayers(NamedTuple):
    """Those of a part that keep something of their own, in the order of registration, and the last
    of them if no other matrix follows: where the second pass can end; and draws before it."""

    all: list[SampledLinear | ChunkedForward]
    last: SampledLinear | ChunkedForward | None
    memo: DrawsMemo


def keeping_layers(module: nn.Module, keeps_draws: bool) -> KeepingLayers:
    found: list[SampledLinear | ChunkedForward] = []
    inside: set[nn.Module] = set()  # of a feed-forward sublayer, which is one
    last: SampledLinear | ChunkedForward | None = None
    for layer in module.modules():
        if isinstance(forward := layer.__dict__.get("forward"), ChunkedForward):
            inside |= {*forward.modules()}
            found = [one for one in found if one not in inside] + [forward]
            last = forward
        elif layer in inside:
            continue
        elif isinstance(layer, SampledLinear):
            found.append(layer)
            last = layer
        elif isinstance(layer, nn.Embedding):  # of T5's relative positions, which come first
            continue
        elif any(p.dim() > 1 for p in layer.parameters(recurse=False)):
            last = None  # much may be saved between: an adapter's base, a block's experts
    drawing = [m for m in module.modules() if keeps_draws and m not in inside and may_draw(m)]
    return KeepingLayers(found, last, DrawsMemo(drawing))


@contextmanager
def picking_late(layers: KeepingLayers) -> Iterator[None]:
    samplers = {layer.sampler for layer in layers.all if isinstance(layer, SampledLinear)}
    with ExitStack() as stack:
        for sampler in samplers:
            stack.enter_context(sampler.recomputed())
        yield


@contextmanager
def _late(layers: KeepingLayers, replays: bool) -> Iterator[None]:
    with picking_late(layers), layers.memo.used(replays):
        yield


def first_pass(layers: KeepingLayers) -> AbstractContextManager[None]:
    """What runs after the last of ``layers`` is saved as it would be without recomputation: by the
    hooks that are there now, say of offloading, if any."""
    there: Any = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return _saving_after(layers, there or (_detached, _as_it_is))


@contextmanager
def _saving_after(layers: KeepingLayers, hooks: Any) -> Iterator[None]:
    # Autocast's cache is off, for it would hold what this pass does not keep: a copy of each
    # weight, until the model returns.
    caches = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    last = layers.last
    try:
        with ExitStack() as stack, _late(layers, replays=False):

            def save(_: Any) -> None:
                layers.memo.end()
                stack.enter_context(saved_tensors_hooks(*hooks))

            if last is not None:
                last.when_done = save
            yield
    finally:
        if last is not None:
            last.when_done = None
        torch.set_autocast_cache_enabled(caches)


class SecondPass:
    """A graph that is retained has several second passes, so this is entered several times."""

    def __init__(self, layers: KeepingLayers) -> None:
        self._layers = layers
        self._stack = ExitStack()

    def _save(self, _: Any) -> None:
        # Reached only with early stop switched off; what is saved from here on, nobody asks for.
        self._layers.memo.end()
        self._stack.enter_context(saved_tensors_hooks(_detached, _as_it_is))

    def __enter__(self) -> None:
        self._stack.enter_context(_late(self._layers, replays=True))
        if (last := self._layers.last) is not None:
            last.without_product, last.when_done = True, self._save

    def __exit__(self, *error: Any) -> None:
        if (last := self._layers.last) is not None:
            last.without_product, last.when_done = False, None
        self._stack.close()


def _detached(x: Tensor) -> Tensor:
    """What is saved instead: a node that held its own output would never be freed."""
    return x.detach()


def _as_it_is(x: Tensor) -> Tensor:
    return x
