"""The facts of a batch, read from the arguments of a call: which rows may have a gradient.

A mask must never hide a row that has a gradient. Padding that no query attends to has none unless a
label stands at it, or it predicts the next token's, as where a causal model is padded on the left.
In a decoder, rows after the last label have none, for no row before them sees them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wtacrs.sampling.batch import Mask
from wtacrs.sampling.sampler import Sampler

IGNORED = -100  # the label of what has no loss
# Layers of a decoder that read the encoder's rows, in the models of transformers.
OF_THE_SOURCE = (
    *("*EncDecAttention.[kv]*", "*encoder_attn.[kv]_proj*", "*cross_attn.[kv]*_proj*"),
    *("*crossattention.self.key*", "*crossattention.self.value*"),
)


class FactsReader:
    """A forward pre-hook of a model: tells ``sampler`` of each batch as the model is called.

    ``sample_ids`` is taken out of the arguments, since no model knows it. What ``start_batch`` was
    told before the call takes precedence.

    Args:
        again: asked until training begins; another reader where ``model`` was changed anew.
    """

    def __init__(
        self, model: nn.Module, sampler: Sampler | None, again: Callable[[], FactsReader | None]
    ) -> None:
        self._sampler, self._names = sampler, [*inspect.signature(model.forward).parameters]
        self.again: Callable[[], FactsReader | None] | None = again

    def __call__(
        self, model: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        # A graph cannot change the model that it is made of.
        trains = model.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if trains and self.again is not None:
            again, self.again = self.again, None
            if (reader := again()) is not None:
                return reader(model, args, kwargs)
        sample_ids = kwargs.pop("sample_ids", None)
        if self._sampler is None:
            return args, kwargs
        sampler = self._sampler.side
        if sampler.expects_facts(model):
            given = {**dict(zip(self._names, args, strict=False)), **kwargs}
            sampler.start_batch(sample_ids, mask_of(model, given))
        return args, kwargs


def mask_of(model: nn.Module, given: dict[str, Any]) -> Mask | None:
    """The mask of the rows that may have a gradient, or None where it is not known.

    Args:
        given: arguments of the model's call: ``attention_mask`` (b, t); ``labels`` (b, t) if any.
    """
    mask, labels = given.get("attention_mask"), given.get("labels")
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return None
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        if not isinstance(labels, Tensor) or labels.dim() != 2:
            return None
        target = (labels != IGNORED).flip(1).cumsum(1).flip(1) > 0
        ofs = {"decoder.*": target, "*.decoder.*": target, "*encoder.*": mask, "*": target}
        return {**dict.fromkeys(OF_THE_SOURCE, mask), **ofs}
    if isinstance(labels, Tensor) and labels.shape == mask.shape:
        labelled = labels != IGNORED
        wanted = labelled | F.pad(labelled[:, 1:], (0, 1))
        # A query that may attend to nothing attends to everything alike, padding included.
        blind = (wanted & ((mask != 0).cumsum(1) == 0)).any(1, keepdim=True)
        return (mask != 0) | wanted | blind
    # With no label for each sample the loss may read any row: an extractive answer's does, and one
    # that is computed elsewhere; and so may a language model's.
    known = isinstance(labels, Tensor) and labels.shape[:1] == mask.shape[:1]
    return mask if known and not getattr(model, "can_generate", bool)() else None


def read_facts(model: nn.Module, reader: FactsReader) -> None:
    """Have the facts of each batch read from the call of ``model``, first of all that hooks do."""
    model.register_forward_pre_hook(reader, with_kwargs=True, prepend=True)


def is_read(model: nn.Module) -> bool:
    """Whether ``read_facts`` was called on it."""
    return any(isinstance(hook, FactsReader) for hook in model._forward_pre_hooks.values())


def stop_reading(model: nn.Module) -> None:
    """Undo ``read_facts``, of a model or a copy."""
    for key, hook in [*model._forward_pre_hooks.items()]:
        if isinstance(hook, FactsReader):
            del model._forward_pre_hooks[key]
            model._forward_pre_hooks_with_kwargs.pop(key, None)
