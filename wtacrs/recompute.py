"""Recomputation: parts of a model whose activations are computed again in the backward pass.

"block" is gradient checkpointing: of each transformer block only the input is kept. "attention"
recomputes the attention sublayer alone (norm, q, k, v, scores, o), which holds most of a block's
activations and a third of its linear products. The price is that part's forward pass, once more.

``torch.utils.checkpoint`` does it, not reentrant. Kept are the tensors that a part is given,
wherever they lie in its arguments, and the generators' states, so that dropout is replayed. Both
passes run with autograd, hence whatever leaves the part has its gradient, be it returned or taken
by a hook (router losses, attention maps); so has a gradient's gradient, and checkpoints nest.
Nothing that the first pass saves is ever read: sampled layers draw in the second one only.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.checkpoint import checkpoint

from wtacrs.sampling.linear import SampledLinear
from wtacrs.sampling.sampler import Sampler

RECOMPUTE = ("none", "attention", "block")


class RecomputedForward:
    """A module's own ``forward``, which hides that of its class: others find blocks by the class.

    The module is held weakly: without a cycle, a model that is deleted is freed at once.
    """

    def __init__(self, module: nn.Module, what: str) -> None:
        self._module, self._what = weakref.ref(module), what
        self.hidden: Callable[..., Any] | None = module.__dict__.get("forward")  # also its own

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_module": self._module()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _module=weakref.ref(state["_module"]))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if (module := self._module()) is None:
            raise ReferenceError("the module of this forward was deleted")
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

        layers = (layer for layer in module.modules() if isinstance(layer, SampledLinear))
        sampler = next((layer.sampler for layer in layers), None)
        if sampler is None and torch.compiler.is_compiling():
            return checkpoint(work, *leaves, use_reentrant=False)  # which is traced whole
        run: Any = torch.compiler.disable(checkpoint)  # with contexts it cannot be traced
        contexts = lambda: (_first_pass(sampler), nullcontext())  # noqa: E731
        return tree_map(_as_new, run(work, *leaves, use_reentrant=False, context_fn=contexts))


def _is_cache(leaf: Any) -> bool:
    return hasattr(leaf, "get_seq_length")


def _without_cache(leaf: Any) -> Any:
    """A cache would take keys and values twice; one that is empty is not read in training."""
    if not _is_cache(leaf):
        return leaf
    if leaf.get_seq_length() > 0:
        raise ValueError("a module that is recomputed cannot read a cache with content")
    return None


@contextmanager
def _first_pass(sampler: Sampler | None) -> Iterator[None]:
    """Draws nothing. Autocast's cache is off, for it would hold what this pass does not keep: a
    copy of each weight, until the model returns."""
    caches = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with nullcontext() if sampler is None else sampler.without_draws():
            yield
    finally:
        torch.set_autocast_cache_enabled(caches)


def _as_new(x: Any) -> Any:
    """A view, if the norm that made ``x`` says that it keeps it, which is not so in a first pass: a
    sampled layer outside would refer to all of ``x`` in vain."""
    return x.view_as(x) if getattr(getattr(x, "grad_fn", None), "keeps_output", False) else x


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
    if what not in RECOMPUTE:
        raise ValueError(f"recompute={what!r} is unknown; choose {', '.join(RECOMPUTE)}")
    if what == "none":
        return []
    if what == "block":
        _refuse_checkpointing(model)
    chosen: dict[str, nn.Module] = {}
    for name, module in _in_blocks(model):
        wanted = "Attention" in type(module).__name__ if what == "attention" else True
        if wanted and not any(name.startswith(f"{outer}.") for outer in chosen):
            chosen[name] = module
    if not chosen:
        classes = ", ".join(sorted({type(m).__name__ for _, m in _in_blocks(model)})) or "none"
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
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
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


def _in_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, module) of the members of each ``nn.ModuleList`` and of all that is inside them."""
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    prefixes = tuple(f"{name}." if name else "" for name in lists)
    return [
        (name, module)
        for name, module in model.named_modules()
        if name.startswith(prefixes) and not isinstance(module, nn.ModuleList)
    ]
