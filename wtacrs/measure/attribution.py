"""What is alive when the forward pass ends: who made it, and who holds it until the backward pass.

"I switched it on and memory did not drop" has one reason: something else still holds the tensor.
``attribute`` names it. Makers are seen by a tracker with a stack of the modules that run, holders
by autograd's own hooks. What is alive out of their sight is held by a recomputation or by Python.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wtacrs.measure.watch import Watch, pattern


@dataclass(frozen=True)
class Held:
    """Storages of one origin that are alive when the forward pass ends.

    Attributes:
        made_in: pattern of the module that made them, its numbers replaced by ``*``.
        operation: the aten operation that made them, say ``native_layer_norm``.
        count, bytes: of the storages; share: of all bytes.
        held_by: all who saved them, "pattern (autograd node)", or the constants of ``watch``.
    """

    made_in: str
    operation: str
    count: int
    bytes: int
    share: float
    held_by: tuple[str, ...]


@dataclass(frozen=True)
class SampledInput:
    """Sampled layers of one pattern that keep nothing of their own, or whose input stays alive.

    Attributes:
        pattern, layers: as in ``Held``, and the qualified names.
        input_bytes: of the layers' inputs, each storage once.
        own_bytes: what the layers made and saved.
        keeps_from: patterns of the modules that made what the layers' nodes saved.
        held_by: who holds the inputs, as in ``Held``; empty: they are gone.
    """

    pattern: str
    layers: tuple[str, ...]
    input_bytes: int
    own_bytes: int
    keeps_from: tuple[str, ...]
    held_by: tuple[str, ...]


@dataclass(frozen=True)
class Attribution:
    """What a forward pass leaves alive. Parameters, buffers and the batch do not count.

    ``bytes`` is the sum of ``rows`` and equals ``measure_step``'s ``saved_bytes``; the rows and the
    ``sampled`` layers come largest first.
    """

    bytes: int
    rows: tuple[Held, ...]
    sampled: tuple[SampledInput, ...]

    def __str__(self) -> str:
        rows = [["MiB", "share", "count", "operation", "made in", "held by"]]
        for row in self.rows:
            size, share = f"{row.bytes / 2**20:.2f}", f"{row.share:.1%}"
            origin = [str(row.count), row.operation, row.made_in]
            rows.append([size, share, *origin, ", ".join(row.held_by)])
        inputs = [
            ["input MiB", "own MiB", "layers", "sampled layer", "keeps from", "input held by"]
        ]
        for layer in self.sampled:
            sizes = [f"{size / 2**20:.2f}" for size in (layer.input_bytes, layer.own_bytes)]
            holders = ", ".join(layer.held_by) or "nobody"
            keeps = ", ".join(layer.keeps_from) or "nothing"
            inputs.append([*sizes, str(len(layer.layers)), layer.pattern, keeps, holders])
        tables = [_aligned(rows), *([_aligned(inputs)] if self.sampled else [])]
        return "\n\n".join(tables)


def attribute(model: nn.Module, batch: Mapping[str, Tensor] | Callable[[], Any]) -> Attribution:
    """Make one forward pass with gradients and tell what it leaves alive.

    Works on any device and on fake tensors, in the mode (train, eval) the model is in.

    Args:
        model: its hooks, sampled layers and checkpointing work as in training.
        batch: ``model(**batch)`` is called; or a function that calls ``model`` once.

    Raises:
        ValueError: the function does not call ``model``.
    """
    watch = Watch(model)
    with torch.enable_grad(), watch.over(model):
        if isinstance(batch, Mapping):
            model(**batch)
        else:
            batch()
    if watch.sizes is None:
        raise ValueError("batch, a function, made no forward pass of the model")
    rows = _rows(watch, watch.sizes)
    return Attribution(sum(row.bytes for row in rows), rows, _sampled(watch, watch.sizes))


def _rows(watch: Watch, sizes: dict[int, int]) -> tuple[Held, ...]:
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number in sizes.keys() & watch.makers.keys():
        name, operation = watch.makers[number]
        groups[pattern(name), operation].append(number)
    total = sum(sizes[number] for numbers in groups.values() for number in numbers)
    rows = []
    for (made_in, operation), numbers in groups.items():
        size = sum(sizes[number] for number in numbers)
        names = tuple(sorted(set().union(*(watch.holders[number] for number in numbers))))
        share = size / total if total else 0.0
        rows.append(Held(made_in, operation, len(numbers), size, share, names))
    return tuple(sorted(rows, key=lambda row: (-row.bytes, row.made_in, row.operation)))


def _sampled(watch: Watch, sizes: dict[int, int]) -> tuple[SampledInput, ...]:
    saved: dict[str, set[int]] = defaultdict(set)  # layer -> what its nodes saved
    for number, savers in watch.savers.items():
        if number in watch.makers and number in sizes:
            for name, _ in savers:
                saved[name].add(number)
    groups: dict[tuple[Any, ...], dict[str, int]] = defaultdict(dict)
    for name, (number, _) in watch.inputs.items():
        own = sum(sizes[n] for n in saved[name] if watch.makers[n][0] == name)
        keeps = tuple(sorted({pattern(watch.makers[n][0]) for n in saved[name]}))
        held = _others(watch.holders[number]) if number in sizes else ()
        if held or not own:
            groups[pattern(name), keeps, held][name] = own
    found = [
        SampledInput(
            pattern=name_pattern,
            layers=tuple(layers),
            input_bytes=sum(dict(watch.inputs[name] for name in layers).values()),
            own_bytes=sum(layers.values()),
            keeps_from=keeps,
            held_by=held,
        )
        for (name_pattern, keeps, held), layers in groups.items()
    ]
    return tuple(sorted(found, key=lambda layer: (not layer.held_by, -layer.input_bytes)))


def _others(holders: set[str]) -> tuple[str, ...]:
    """Holders but sampled layers, which refer to an input only where it stays alive anyway."""
    sampled = "(SampledLinearFunction)", "(LateLinearFunction)"
    return tuple(sorted(name for name in holders if not name.endswith(sampled)))


def _aligned(rows: list[list[str]]) -> str:
    """Lines of columns; those of numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, widths, rows[-1], strict=True)
        lines.append(
            "  ".join(
                cell.rjust(width) if last[:1].isdigit() else cell.ljust(width)
                for cell, width, last in cells
            ).rstrip()
        )
    return "\n".join(lines)
