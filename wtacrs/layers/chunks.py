"""The swap: feed-forward sublayers found by what they do, chunked in place, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from wtacrs.layers import relu
from wtacrs.layers.chains import NOT_BY_ROWS, chain_of, ends_of, leads_back, widens
from wtacrs.layers.feed_forward import ChunkedForward, Deferred
from wtacrs.layers.products import Verdicts, in_vain, last_linear
from wtacrs.layers.relu import ReLUFeedForward
from wtacrs.layers.trial import SHAPE, close_to, kind_of, one_step, settings_of, trial_copy
from wtacrs.swap import attends, in_blocks


def chunk_feed_forward_(model: nn.Module, left: dict[str, list[str]] | None = None) -> list[str]:
    """Have the feed-forward sublayers of ``model`` go through their rows in parts, in place.

    Taken are, inside transformer blocks (members of an ``nn.ModuleList``), the outermost modules
    that hold linear layers from d to a wider width (or to two of them, one for a gate) and back and
    treat each row by itself, norms and residuals included; pairs of ``intermediate`` and
    ``output.dense``, as BERT and its likes have them, computed together in the latter; and such
    layers with a module between them in a block that does more (``chains``), computed in the last.

    Each kind is tried first, on a copy with a few random rows: output and gradients must be those
    of the plain module. So must they be with the last product left out of the second pass, or it
    is not left out.

    Args:
        left: gets the modules with a feed-forward that stays whole: reason -> qualified names.

    Returns:
        The qualified names of the modules that do it.
    """
    verdicts: dict[Any, _How | None] = {}
    chains: dict[Any, tuple[str, ...] | str] = {}
    adapters: Verdicts = {}
    chosen: list[str] = []
    for name, module in in_blocks(model):
        if name.startswith(tuple(f"{one}." for one in chosen)) or "forward" in module.__dict__:
            continue
        for part, *modules in _candidates(model, module, chains):
            key = kind_of(*modules)
            if key not in verdicts:
                verdicts[key] = _try(modules, adapters)
            if (how := verdicts[key]) is not None:
                _chunk(modules, how, adapters)
                chosen.append(name + part)
                break
        else:
            if left is not None and (why := chains.get(_kind_of_block(module))) is not None:
                why = why if isinstance(why, str) else NOT_BY_ROWS
                left.setdefault(f"{type(module).__name__}: {why}", []).append(name)
    return chosen


def restore_feed_forward_(model: nn.Module) -> None:
    """Undo ``chunk_feed_forward_``, in place."""
    for module in model.modules():
        ours = (ChunkedForward, Deferred, ReLUFeedForward)
        if isinstance(module.__dict__.get("forward"), ours):
            del module.forward


def _candidates(model: nn.Module, module: nn.Module, chains: dict[Any, Any]) -> Iterator[Any]:
    """(what to add to the name of ``module``, modules called one after the other) of what may be a
    feed-forward sublayer, in ``module`` or all of it; ``chains`` keeps what was seen in calls."""
    linears = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    before, output = getattr(module, "intermediate", None), getattr(module, "output", None)
    first, last = getattr(before, "dense", None), getattr(output, "dense", None)
    if isinstance(before, nn.Module) and isinstance(last, nn.Module) and widens(first):
        yield ".output.dense", before, last
    elif linears and widens(linears[0]) and _is_of_linears(module, linears):
        yield "", module
    ends = None if attends(module) else ends_of(module)
    if ends is None:
        return
    if (key := _kind_of_block(module)) not in chains:
        chains[key] = chain_of(module, ends)
    if isinstance(chain := chains[key], tuple):
        parts = [module.get_submodule(name) for name in chain]
        if not any("forward" in vars(part) or _is_shared(model, part) for part in parts):
            yield f".{chain[-1]}", *parts


def _kind_of_block(block: nn.Module) -> Any:
    """What blocks have in common; their attentions know their place, which makes no difference."""
    own = (type(block), settings_of(block))
    return str(own) + kind_of(*(child for child in block.children() if not attends(child)))


def _is_of_linears(module: nn.Module, linears: list[nn.Linear]) -> bool:
    """Whether of its layers one leads back from the first, and it has no other matrices: experts,
    say, and a router of which a hook takes the logits."""
    inside = {p for layer in linears for p in layer.parameters(recurse=False)}
    others = any(p.dim() > 1 and p not in inside for p in module.parameters())
    return not others and any(leads_back(linears[0], other) for other in linears)


def _is_shared(model: nn.Module, part: nn.Module) -> bool:
    """Whether several modules call it their own."""
    return sum(part in {*module.children()} for module in model.modules()) > 1


_How = tuple[bool, bool]  # what is made in vain is left out; the ReLU's first product, too


def _chunk(modules: Sequence[nn.Module], how: _How, adapters: Verdicts) -> ChunkedForward:
    *before, module = modules
    module.forward = run = ChunkedForward(module, before)
    for one in before:
        one.forward = Deferred()
    skips, of_relu = how
    if skips:
        run.in_vain = in_vain(last_linear(run.modules()), adapters)
    if of_relu:
        for part in run.modules():
            if relu.fits(part):
                part.forward = ReLUFeedForward(part)
    return run


def _try(modules: list[nn.Module], adapters: Verdicts) -> _How | None:
    """How the sublayer can be chunked, or None if it cannot."""
    real, cpu = unset_fake_temporarily(), torch.device("cpu")  # in a plan, too
    with real, cpu, torch.random.fork_rng(devices=[]), torch.enable_grad():
        call = nn.Sequential(*trial_copy(*modules))
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
            trial = trial_copy(*modules)
            if how[1] and not any(relu.fits(part) for part in trial[-1].modules()):
                continue
            _chunk([*trial], how, adapters).least_parts = len(x)
            call = nn.Sequential(*trial)
            if all(map(close_to, one_step(call, call, x, dy), expected)):
                return how
    return None


def _is_row_wise(call: nn.Module, x: Tensor) -> bool:
    """Whether each row of the output comes from the same row of the input ``x`` (b, t, i)."""
    with torch.no_grad():
        whole, rows = call.eval()(x), call(x.flatten(0, 1)[:, None])
    call.train()
    return isinstance(whole, Tensor) and whole.shape == x.shape and close_to(rows.view_as(x), whole)
