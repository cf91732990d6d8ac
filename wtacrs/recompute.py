"""Recomputation: parts of a model whose activations are computed again in the backward pass.

"block" is gradient checkpointing: of each transformer block only the input is kept. "attention"
recomputes the attention sublayer alone (norm, q, k, v, scores, o), which holds most of a block's
activations and a third of its linear products. The price is that part's forward pass, once more.

``torch.utils.checkpoint`` does it, not reentrant. Kept are the tensors that a part is given,
wherever they lie in its arguments, and the generators' states, so that dropout is replayed. Both
passes run with autograd, hence whatever leaves the part has its gradient, be it returned or taken
by a hook (router losses, attention maps); so has a gradient's gradient, and checkpoints nest.
Sampled layers inside pick their rows late.

The second pass ends at the last layer that keeps something of its own, a sampled one or a whole
feed-forward sublayer: what comes after it is saved in the first pass as if nothing were recomputed
(one bit an element of a dropout; the output of a norm, which is the next block's input anyway). So
the product of that layer, whose value no gradient needs, is not computed again, by construction:
torch stops a second pass once everything is there that the first one left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.checkpoint import checkpoint

from wtacrs.autograd import is_kept
from wtacrs.integrations.checkpointing import checkpoints
from wtacrs.layers.feed_forward import ChunkedForward
from wtacrs.sampling.linear import SampledLinear
from wtacrs.swap import OwnForward, in_blocks

PARTS = ("none", "attention", "block")


class RecomputedForward(OwnForward):
    """Computes a module again in the backward pass."""

    def __init__(self, module: nn.Module, what: str) -> None:
        super().__init__(module)
        self._what = what
        self.hidden: Callable[..., Any] | None = module.__dict__.get("forward")  # also its own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module
        plain = self.hidden or partial(type(module).forward, module)
        if not (module.training and torch.is_grad_enabled()):
            return plain(*args, **kwargs)
        if self._what == "block":
            _refuse_checkpointing(module)
        # As leaves: hooks see, and checkpoint asks for its generator, only what lies open.
        leaves, structure = tree_flatten((args, kwargs), is_leaf=_is_cache)
        leaves = [_without_cache(leaf) for leaf in leaves]

        def work(*leaves: Any) -> Any:
            args, kwargs = tree_unflatten(leaves, structure)
            return plain(*args, **kwargs)

        layers = _layers(module)
        if torch.compiler.is_compiling():  # which leaves out by itself what no gradient needs
            with _late(layers):
                return checkpoint(work, *leaves, use_reentrant=False)
        contexts = lambda: (_first_pass(layers), _SecondPass(layers))  # noqa: E731
        outputs: Any = checkpoint(work, *leaves, use_reentrant=False, context_fn=contexts)
        return outputs if layers.last is not None else tree_map(_as_new, outputs)


def _is_cache(leaf: Any) -> bool:
    return hasattr(leaf, "get_seq_length")


def _without_cache(leaf: Any) -> Any:
    """A cache would take keys and values twice; one that is empty is not read in training."""
    if not _is_cache(leaf):
        return leaf
    if leaf.get_seq_length() > 0:
        raise ValueError("a module that is recomputed cannot read a cache with content")
    return None


class _Layers(NamedTuple):
    """Those of a part that keep something of their own, in the order of registration, and the last
    of them if no other linear layer follows: where the part's second pass can end."""

    all: list[SampledLinear | ChunkedForward]
    last: SampledLinear | ChunkedForward | None


def _layers(module: nn.Module) -> _Layers:
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
        elif isinstance(layer, nn.Linear):  # much may be saved between, as with adapters
            last = None
    return _Layers(found, last)


@contextmanager
def _late(layers: _Layers) -> Iterator[None]:
    samplers = {layer.sampler for layer in layers.all if isinstance(layer, SampledLinear)}
    with ExitStack() as stack:
        for sampler in samplers:
            stack.enter_context(sampler.recomputed())
        yield


def _first_pass(layers: _Layers) -> AbstractContextManager[None]:
    """What runs after the last of ``layers`` is saved as it would be without recomputation: by the
    hooks that are there now, say of offloading, if any."""
    there: Any = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return _saving_after(layers, there or (_detached, _as_it_is))


@contextmanager
def _saving_after(layers: _Layers, hooks: Any) -> Iterator[None]:
    # Autocast's cache is off, for it would hold what this pass does not keep: a copy of each
    # weight, until the model returns.
    caches = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    last = layers.last
    try:
        with ExitStack() as stack, _late(layers):

            def save(_: Any) -> None:
                stack.enter_context(saved_tensors_hooks(*hooks))

            if last is not None:
                last.when_done = save
            yield
    finally:
        if last is not None:
            last.when_done = None
        torch.set_autocast_cache_enabled(caches)


class _SecondPass:
    """A graph that is retained has several second passes, so this is entered several times."""

    def __init__(self, layers: _Layers) -> None:
        self._layers = layers
        self._stack = ExitStack()

    def _save(self, _: Any) -> None:
        # Reached only with early stop switched off; what is saved from here on, nobody asks for.
        self._stack.enter_context(saved_tensors_hooks(_detached, _as_it_is))

    def __enter__(self) -> None:
        self._stack.enter_context(_late(self._layers))
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


def _as_new(x: Any) -> Any:
    """A view, if the norm that made ``x`` says that it keeps it, which is not so in a first pass: a
    sampled layer outside would refer to all of ``x`` in vain."""
    return x.view_as(x) if is_kept(x) else x


def recompute_(model: nn.Module, what: str) -> list[str]:
    """Have parts of ``model`` recomputed in the backward pass, in place, while it trains.

    Args:
        model: a model with transformer blocks (members of an ``nn.ModuleList``).
        what: "attention", the outermost modules in a block whose class is named ...Attention, or
            "block", the blocks; "none" changes nothing.

    Returns:
        The qualified names of the modules that are recomputed.

    Raises:
        ValueError: ``what`` is unknown, nothing matches, or the model recomputes already; "block"
            also where the model checkpoints its blocks, in which "attention" may be recomputed.
    """
    if what not in PARTS:
        raise ValueError(f"recompute={what!r} is unknown; choose {', '.join(PARTS)}")
    if what == "none":
        return []
    if what == "block":
        _refuse_checkpointing(model)
    chosen: dict[str, nn.Module] = {}
    for name, module in in_blocks(model):
        wanted = "Attention" in type(module).__name__ if what == "attention" else True
        if wanted and not any(name.startswith(f"{outer}.") for outer in chosen):
            chosen[name] = module
    if not chosen:
        classes = ", ".join(sorted({type(m).__name__ for _, m in in_blocks(model)})) or "none"
        looked_for = "named ...Attention inside a block" if what == "attention" else "in a block"
        raise ValueError(
            f"this {type(model).__name__} has no module {looked_for} (a member of an "
            f"nn.ModuleList); classes inside blocks: {classes}"
        )
    if any(isinstance(m.__dict__.get("forward"), RecomputedForward) for m in model.modules()):
        raise ValueError("the model is recomputed already; call restore_forward_(model) first")
    for module in chosen.values():
        module.forward = RecomputedForward(module, what)
    return [*chosen]


def _refuse_checkpointing(model: nn.Module) -> None:
    if checkpoints(model):
        raise ValueError(
            "the model has gradient checkpointing enabled already; leave recompute at none, or "
            "disable it (Trainer: gradient_checkpointing=False)"
        )


def restore_forward_(model: nn.Module) -> None:
    """Undo ``recompute_``, in place."""
    for module in model.modules():
        if isinstance(forward := module.__dict__.get("forward"), RecomputedForward):
            del module.forward
            if forward.hidden is not None:
                module.forward = forward.hidden
