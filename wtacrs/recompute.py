"""Recomputation: parts of a model whose activations are computed again in the backward pass.

"block" is gradient checkpointing: of each transformer block only the input is kept. "attention"
recomputes the attention sublayer alone (norm, q, k, v, scores, o), which holds most of a block's
activations and a third of its linear products. The price is that part's forward pass, once more.

``torch.utils.checkpoint`` does it, not reentrant. Kept are the tensors that a part is given,
wherever they lie in its arguments, and the generators' states, so that dropout is replayed; on a
CPU its bits, too. Both passes run with autograd, hence whatever leaves the part has its gradient,
be it returned or taken by a hook (router losses, attention maps); so has a gradient's gradient, and
checkpoints nest. Sampled layers inside pick their rows late.

Where the second pass can end early, it does: see ``passes``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.checkpoint import checkpoint

from wtacrs.autograd import is_kept
from wtacrs.integrations.checkpointing import refuse_checkpoints
from wtacrs.layers.products import Verdicts
from wtacrs.passes import SecondPass, first_pass, part_of, picking_late, samplers_of
from wtacrs.swap import OwnForward, attends, in_blocks

PARTS = ("none", "attention", "block")
SLOW_TO_DRAW = {"cpu"}  # devices; elsewhere to draw again costs less than to keep a bit an element


class RecomputedForward(OwnForward):
    """Computes a module again in the backward pass."""

    def __init__(
        self, module: nn.Module, what: str, output_share: float, verdicts: Verdicts
    ) -> None:
        super().__init__(module)
        self._what, self._output_share, self._verdicts = what, output_share, verdicts
        self.hidden: Callable[..., Any] | None = module.__dict__.get("forward")  # also its own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module
        plain = self.hidden or partial(type(module).forward, module)
        if not (module.training and torch.is_grad_enabled()):
            return plain(*args, **kwargs)
        if self._what == "block":
            refuse_checkpoints(module, self._what)
        # As leaves: hooks see, and checkpoint asks for its generator, only what lies open.
        leaves, structure = tree_flatten((args, kwargs), is_leaf=_is_cache)
        leaves = [_without_cache(leaf) for leaf in leaves]

        def work(*leaves: Any) -> Any:
            args, kwargs = tree_unflatten(leaves, structure)
            return plain(*args, **kwargs)

        if torch.compiler.is_compiling():  # which leaves out by itself what no gradient needs
            with picking_late(samplers_of(module.modules())):
                return checkpoint(work, *leaves, use_reentrant=False)
        slow = all(x.device.type in SLOW_TO_DRAW for x in leaves if isinstance(x, Tensor))
        part = part_of(module, slow, self._output_share, self._verdicts)
        contexts = lambda: (first_pass(part), SecondPass(part))  # noqa: E731
        outputs: Any = checkpoint(work, *leaves, use_reentrant=False, context_fn=contexts)
        return outputs if part.last is not None else tree_map(_as_new, outputs)


def _is_cache(leaf: Any) -> bool:
    return hasattr(leaf, "get_seq_length")


def _without_cache(leaf: Any) -> Any:
    """A cache would take keys and values twice; one that is empty is not read in training."""
    if not _is_cache(leaf):
        return leaf
    if leaf.get_seq_length() > 0:
        raise ValueError("a module that is recomputed cannot read a cache with content")
    return None


def _as_new(x: Any) -> Any:
    """A view, if the norm that made ``x`` says that it keeps it, which is not so in a first pass: a
    sampled layer outside would refer to all of ``x`` in vain."""
    return x.view_as(x) if is_kept(x) else x


def recompute_(model: nn.Module, what: str, attention_output_share: float = 0.0) -> list[str]:
    """Have parts of ``model`` recomputed in the backward pass, in place, while it trains.

    Args:
        model: a model with transformer blocks (members of an ``nn.ModuleList``).
        what: "attention", the outermost modules in a block that attend, or "block", the blocks;
            "none" changes nothing.
        attention_output_share: see ``wtacrs.attention.kept``.

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
        refuse_checkpoints(model, what)
    if not (chosen := parts_of(model, what)):
        classes = ", ".join(sorted({type(m).__name__ for _, m in in_blocks(model)})) or "none"
        named = "named ...Attention, or with is_causal, " if what == "attention" else ""
        raise ValueError(
            f"this {type(model).__name__} has no module {named}in a block (a member of an "
            f"nn.ModuleList); classes inside blocks: {classes}"
        )
    if any(isinstance(m.__dict__.get("forward"), RecomputedForward) for m in model.modules()):
        raise ValueError("the model is recomputed already; call restore_forward_(model) first")
    verdicts: Verdicts = {}
    for module in chosen.values():
        module.forward = RecomputedForward(module, what, attention_output_share, verdicts)
    return [*chosen]


def parts_of(model: nn.Module, what: str) -> dict[str, nn.Module]:
    """What ``recompute_`` takes of ``model``, by name."""
    chosen: dict[str, nn.Module] = {}
    for name, module in in_blocks(model):
        wanted = what != "attention" or attends(module)
        if wanted and not any(name.startswith(f"{outer}.") for outer in chosen):
            chosen[name] = module
    return chosen


def restore_forward_(model: nn.Module) -> None:
    """Undo ``recompute_``, in place."""
    for module in model.modules():
        if isinstance(forward := module.__dict__.get("forward"), RecomputedForward):
            del module.forward
            if forward.hidden is not None:
                module.forward = forward.hidden
