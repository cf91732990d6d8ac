"""The swap: feed-forward sublayers found by what they do, chunked in place, and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from wtacrs.layers import relu
from wtacrs.layers.feed_forward import ChunkedForward, Deferred
from wtacrs.layers.products import Verdicts, in_vain, last_linear
from wtacrs.layers.relu import ReLUFeedForward
from wtacrs.layers.trial import SHAPE, close_to, kind_of, one_step, trial_copy
from wtacrs.swap import attends, in_blocks

OF_THE_BLOCK = "feed-forward not in parts: its layers are the block's own"


def chunk_feed_forward_(model: nn.Module, left: dict[str, list[str]] | None = None) -> list[str]:
    """Have the feed-forward sublayers of ``model`` go through their rows in parts, in place.

    Taken are, inside transformer blocks (members of an ``nn.ModuleList``), the outermost modules
    that hold linear layers from d to a wider width (or to two of them, one for a gate) and back and
    treat each row by itself, norms and residuals included; and pairs of ``intermediate`` and
    ``output.dense``, as BERT and its likes have them, computed together in the latter.

    Each kind is tried first, on a copy with a few random rows: output and gradients must be those
    of the plain module. So must they be with the last product left out of the second pass, or it
    is not left out.

    Args:
        left: gets the blocks that hold such layers themselves, beside an attention, so that no
            module has the feed-forward alone: reason -> qualified names.

    Returns:
        The qualified names of the modules that do it.
    """
    verdicts: dict[Any, _How | None] = {}
    adapters: Verdicts = {}
    chosen: list[str] = []
    for name, module in in_blocks(model):
        if name.startswith(tuple(f"{one}." for one in chosen)) or "forward" in module.__dict__:
            continue
        for candidate, before in _candidates(module):
            key = kind_of(candidate, before)
            if key not in verdicts:
                verdicts[key] = _try(candidate, before, adapters)
            if (how := verdicts[key]) is not None:
                _chunk(candidate, before, how, adapters)
                chosen.append(name if before is None else f"{name}.output.dense")
    whole = [name for name, block in in_blocks(model) if _has_both(block)]
    if left is not None and whole:
        left[OF_THE_BLOCK] = whole
    return chosen


def restore_feed_forward_(model: nn.Module) -> None:
    """Undo ``chunk_feed_forward_``, in place."""
    for module in model.modules():
        ours = (ChunkedForward, Deferred, ReLUFeedForward)
        if isinstance(module.__dict__.get("forward"), ours):
            del module.forward


def _candidates(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Module | None]]:
    """(module, what comes before it) that may be a feed-forward sublayer, ``module`` or in it."""
    before, output = getattr(module, "intermediate", None), getattr(module, "output", None)
    first, last = getattr(before, "dense", None), getattr(output, "dense", None)
    if isinstance(before, nn.Module) and isinstance(last, nn.Module) and _widens(first):
        yield last, before
        return
    linears = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    inside = {p for layer in linears for p in layer.parameters(recurse=False)}
    if any(p.dim() > 1 and p not in inside for p in module.parameters()):
        return  # experts, say, and a router of which a hook takes the logits
    if linears and _widens(linears[0]) and any(_fits(linears[0], other) for other in linears):
        yield module, None


def _has_both(block: nn.Module) -> bool:
    """Whether an attention and a feed-forward's layers are its children."""
    children: list[Any] = [*block.children()]
    layers = [one for one in children if hasattr(one, "out_features")]  # adapters, too
    wide = [one for one in layers if one.out_features > one.in_features]
    pair = any(_fits(first, last) for first in wide for last in layers)
    return pair and any(map(attends, children))


def _widens(first: Any) -> bool:
    return isinstance(first, nn.Linear) and first.out_features > first.in_features


def _fits(first: Any, last: Any) -> bool:
    widths = first.out_features, first.out_features / 2  # a gate may halve it
    return last.in_features in widths and bool(last.out_features == first.in_features)


_How = tuple[bool, bool]  # what is made in vain is left out; the ReLU's first product, too


def _chunk(
    module: nn.Module, before: nn.Module | None, how: _How, adapters: Verdicts
) -> ChunkedForward:
    module.forward = run = ChunkedForward(module, before)
    if before is not None:
        before.forward = Deferred()
    skips, of_relu = how
    if skips:
        run.in_vain = in_vain(last_linear(run.modules()), adapters)
    if of_relu:
        for part in run.modules():
            if relu.fits(part):
                part.forward = ReLUFeedForward(part)
    return run


def _try(module: nn.Module, before: nn.Module | None, adapters: Verdicts) -> _How | None:
    """How the sublayer can be chunked, or None if it cannot."""
    real, cpu = unset_fake_temporarily(), torch.device("cpu")  # in a plan, too
    with real, cpu, torch.random.fork_rng(devices=[]), torch.enable_grad():
        trial = trial_copy(module, before)
        call = _whole(*trial)
        width = next(m.in_features for m in call.modules() if isinstance(m, nn.Linear))
        generator = torch.Generator().manual_seed(1)
        x, dy = torch.randn(2, *SHAPE, width, generator=generator)  # (b, t, i)
        try:
            if not _is_row_wise(call, x):
                return None
        except Exception:  # it takes something else than one input
            return None
        buffers = [b.clone() for b in call.buffers()]
        # In the same parts, so that dropout draws the same.
        expected = one_step(lambda x: torch.cat([call(part) for part in x.split(1)]), call, x, dy)
        if not all(map(torch.equal, buffers, call.buffers())):
            return None  # statistics of the batch, say, which parts would take of themselves
        for how in ((True, True), (True, False), (False, False)):
            trial = trial_copy(module, before)
            if how[1] and not any(relu.fits(part) for part in trial[0].modules()):
                continue
            _chunk(*trial, how, adapters).least_parts = len(x)
            call = _whole(*trial)
            if all(map(close_to, one_step(call, call, x, dy), expected)):
                return how
    return None


def _whole(module: nn.Module, before: nn.Module | None) -> nn.Module:
    return module if before is None else nn.Sequential(before, module)


def _is_row_wise(call: nn.Module, x: Tensor) -> bool:
    """Whether each row of the output comes from the same row of the input ``x`` (b, t, i)."""
    with torch.no_grad():
        whole, rows = call.eval()(x), call(x.flatten(0, 1)[:, None])
    call.train()
    return isinstance(whole, Tensor) and whole.shape == x.shape and close_to(rows.view_as(x), whole)
