"""Feed-forwards written into a block itself: fc1, an activation and fc2 beside its attention.

A block mixes tokens, but these three can go through their rows in parts if nothing comes between.
That is seen in a call of a copy: the very tensor that one gives is what the next one is given.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from wtacrs.layers.trial import SHAPE, trial_copy

WHOLE = "no feed-forward in parts:"
NOT_CALLED = f"{WHOLE} tried with one input (b, t, i), it was not reached"
MORE = f"{WHOLE} more than one module comes between layers that widen and lead back"
ELSEWHERE = f"{WHOLE} one of its modules works elsewhere in the block, too"
NOT_BY_ROWS = f"{WHOLE} what comes between its layers does not treat each row by itself"


def widens(layer: Any) -> bool:
    """Whether it is a linear layer from d to a wider width."""
    return isinstance(layer, nn.Linear) and layer.out_features > layer.in_features


def leads_back(first: nn.Linear, last: nn.Linear) -> bool:
    """Whether ``last`` leads from where ``first`` leads to back to d."""
    widths = first.out_features, first.out_features / 2  # a gate may halve it
    return last.in_features in widths and last.out_features == first.in_features


def ends_of(module: nn.Module) -> tuple[str, str] | None:
    """The names of two of its own layers, one that widens and one that leads back."""
    linears = {name: one for name, one in module.named_children() if isinstance(one, nn.Linear)}
    for name, first in linears.items():
        for other, last in linears.items():
            if widens(first) and leads_back(first, last):
                return name, other
    return None


def chain_of(block: nn.Module, ends: tuple[str, str]) -> tuple[str, ...] | str:
    """The names of the two ``ends`` of a feed-forward in ``block`` and of the module that alone
    comes between, in the order in which they are called; or why that is not so."""
    real, cpu = unset_fake_temporarily(), torch.device("cpu")  # in a plan, too
    with real, cpu, torch.random.fork_rng(devices=[]), torch.no_grad():
        calls = _calls(trial_copy(block)[0], ends[0])
    first, last = ([call for call in calls if call[0] == name] for name in ends)
    if not (first and last):
        return NOT_CALLED
    for name, given, gives in calls:
        if given is first[0][2] and gives is last[0][1] and name not in ends:
            once = [len([call for call in calls if call[0] == one]) for one in (*ends, name)]
            return (ends[0], name, ends[1]) if once == [1, 1, 1] else ELSEWHERE
    return MORE


def _calls(block: nn.Module, first: str) -> list[tuple[str, Any, Any]]:
    """(name, input, output) of each call of a child of ``block``, in order."""
    calls: list[tuple[str, Any, Any]] = []
    for name, child in block.named_children():

        def note(_: nn.Module, given: Any, gives: Any, name: str = name) -> None:
            calls.append((name, given[0] if given else None, gives))

        child.register_forward_hook(note)
    width: int = block.get_submodule(first).in_features  # type: ignore[assignment]
    x = torch.randn(*SHAPE, width, generator=torch.Generator().manual_seed(1))
    asked = [*inspect.signature(type(block).forward).parameters.values()][2:]
    others: list[Tensor | None] = [
        None for one in asked if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD
    ]
    with suppress(Exception):  # of what comes after, perhaps: all that counts is what was called
        block(x, *others)
    return calls
