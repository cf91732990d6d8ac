"""What is known of a batch, and to which forward pass it belongs.

A mask of another batch biases dW in silence, so facts are bound to the forward pass that they were
told of, and to nothing else. A forward pass starts with ``Sampler.start_batch`` or with the call of
the model, and ends when the model returns or its backward pass begins. A recomputation (activation
checkpointing) happens in a backward pass, maybe when another batch is under way. It belongs to the
pass whose node asks for it: autograd numbers its nodes in the order in which they are made, so the
number of the node that runs says in which forward pass it was made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from wtacrs.sampling.estimators import SlotTables

Mask = Tensor | Mapping[str, Tensor]

ONE_MASK_FOR_TWO = (
    "this model has an encoder and a decoder, whose rows one mask cannot tell: give a mapping from "
    'layer patterns to masks, say {"*encoder.*": attention_mask, "*.EncDecAttention.[kv]": '
    'attention_mask, "*": labels != -100} for a T5 (keys and values of the cross-attention read '
    "the encoder's rows), or no mask"
)
REMEMBERED = 64  # forward passes whose backward pass may still come, say under pipelining


@dataclass(frozen=True)
class Facts:
    """What ``start_batch`` was told: ids (b,) on the host, masks (b, t). Nothing, by default."""

    sample_ids: Tensor | None = None
    mask: Mask | None = None

    def __post_init__(self) -> None:
        given = [*self.masks(), *([] if self.sample_ids is None else [self.sample_ids])]
        if wrong := [type(one).__name__ for one in given if not isinstance(one, Tensor)]:
            raise ValueError(f"masks and sample_ids must be tensors, not {', '.join(wrong)}")
        for one in self.masks():
            if one.dim() != 2:
                raise ValueError(f"mask has shape {tuple(one.shape)}; give (batch, tokens)")
        ids = self.sample_ids
        if ids is None:
            return
        if ids.dim() != 1 or any(one.shape[0] != ids.numel() for one in self.masks()):
            raise ValueError(
                f"sample_ids have shape {tuple(ids.shape)} and the masks "
                f"{[tuple(one.shape) for one in self.masks()]}; give (batch,) and (batch, tokens)"
            )
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(f"sample_ids are {ids.dtype}; give integers")
        object.__setattr__(self, "sample_ids", ids.to("cpu", torch.int64))

    def masks(self) -> list[Tensor]:
        if self.mask is None:
            return []
        return [*self.mask.values()] if isinstance(self.mask, Mapping) else [self.mask]

    def check_masks(self, two_sequences: bool) -> None:
        """Raise ValueError for one mask where a model reads two sequences."""
        if two_sequences and isinstance(self.mask, Tensor):
            raise ValueError(ONE_MASK_FOR_TWO)

    def mask_of(self, name: str) -> Tensor | None:
        """The mask for the layer ``name``: of a mapping, that of the first glob that matches."""
        if self.mask is None or isinstance(self.mask, Tensor):
            return self.mask
        return next((m for glob, m in self.mask.items() if fnmatchcase(name, glob)), None)

    def rows_of(self, name: str, shape: torch.Size) -> Rows:
        """What is known of the rows of an input (..., i) of the layer ``name``.

        A mask fits (b, t, i), and (b t, i) only where a mapping names it for this layer; any other
        likeness of shapes is a coincidence. Rows of which nothing is known are samples of a token.
        """
        mask, ids = self.mask_of(name), self.sample_ids
        if len(shape) >= 3:
            b, t = shape[:-2].numel(), shape[-2]
        elif mask is not None and isinstance(self.mask, Mapping) and mask.numel() == shape[0]:
            b, t = mask.shape
        else:
            b, t = shape[:-1].numel(), 1
        batched = len(shape) <= 3
        fits_mask = batched and mask is not None and mask.shape == (b, t)
        fits_ids = batched and ids is not None and ids.numel() == b
        return Rows(b, t, ids if fits_ids else None, mask if fits_mask else None)


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one layer's input: b samples by t tokens."""

    b: int
    t: int
    sample_ids: Tensor | None = None  # (b,) int64 on the host
    mask: Tensor | None = None  # (b, t), 1 for tokens that count


@dataclass(eq=False)
class Reported:
    """||dY_n|| (n,) of the layers that read one input, as the backward pass tells them.

    It holds no activation. A layer that reports twice (two backward passes through one graph)
    counts once.
    """

    leader: str  # the first layer that reads the input: its norms are filed under this name
    rows: Rows
    of: ForwardPass
    norms: dict[str, Tensor] = field(default_factory=dict)
    settled: bool = False

    def take(self, name: str, norms: Tensor) -> None:
        """Norms (n,) of the layer ``name``."""
        self.of.ended = True
        if self.settled:
            return
        if not self.norms:
            self.of.reported.append(self)
        self.norms[name] = norms


class ForwardPass:
    """A forward pass of the model and what its layers share."""

    def __init__(self, facts: Facts, reported: list[Reported], alone: bool = False) -> None:
        self.facts = facts
        self.ended = False  # the model returned, or its backward pass has begun
        self.end: int | None = None  # number of autograd's next node when the model returned
        self.inputs = WeakTensorKeyDictionary()  # input tensor -> the draw for it
        self.known: dict[Any, Any] = {}  # what layers whose rows are alike share, see ``known.py``
        # A layer that is called by itself has nobody to share with.
        self.slots = None if alone else SlotTables()
        self.reported = reported  # of all passes of a sampler
        self.tickets: dict[int, Reported] = {}  # of draws in a compiled graph

    def forget(self) -> None:
        """Let go what layers of a pass that is over do not share any more."""
        self.known.clear()
        if self.slots is not None:
            self.slots.clear()


class Passes:
    """The forward passes that are under way, and what their backward passes have reported."""

    def __init__(self) -> None:
        self.reported: list[Reported] = []
        # (number that autograd's next node had when the pass began, pass)
        self._begun: deque[tuple[int, ForwardPass]] = deque(maxlen=REMEMBERED)
        self._strange: tuple[int, ForwardPass] | None = None
        self._tickets = count()

    def begin(self, facts: Facts, alone: bool = False) -> ForwardPass:
        """Layers that run from now on belong to a new pass. What older ones could find again, if
        they were recomputed, is let go."""
        for _, one in self._begun:
            one.forget()
            one.inputs.clear()
        self._begun.append((_next_number(), ForwardPass(facts, self.reported, alone)))
        return self._begun[-1][1]

    def end(self) -> None:
        """The model returned: what runs from now on belongs to no pass, or to another one."""
        if self._begun:
            one = self._begun[-1][1]
            one.ended, one.end = True, _next_number()
            one.forget()

    def current(self) -> ForwardPass | None:
        """The pass to which a layer that runs now belongs; None: to one that nobody told of."""
        task = torch._C._current_graph_task_id()
        if task != -1:
            return self._of_running_node(task)
        return self._begun[-1][1] if self._begun and not self._begun[-1][1].ended else None

    def ticket(self, reported: Reported) -> int:
        """A number by which a compiled graph, which holds tensors only, finds ``reported`` again as
        long as its forward pass is remembered."""
        number = next(self._tickets)
        reported.of.tickets[number] = reported
        return number

    def of_ticket(self, number: int) -> Reported | None:
        """The inverse of ``ticket``."""
        found = (one.tickets[number] for _, one in self._begun if number in one.tickets)
        return next(found, None)

    def _of_running_node(self, task: int) -> ForwardPass:
        node = torch._C._current_autograd_node()
        if node is not None:
            number = node._sequence_nr()
            for start, one in reversed(self._begun):
                if start <= number and (one.end is None or number < one.end):
                    return one
                if start <= number:
                    break  # made in a backward pass: a recomputation within another one
        if self._strange is None or self._strange[0] != task:  # older than what is remembered
            self._strange = task, ForwardPass(Facts(), self.reported)
        return self._strange[1]


def recomputes() -> bool:
    """Whether a backward pass is under way: a forward pass that runs now is done again."""
    return torch._C._current_graph_task_id() != -1


def _next_number() -> int:
    """The number that autograd's next node will have."""
    return int(torch._C._autograd._get_sequence_nr())
