"""The loss of transformers' language models, in place, by their own setting ``loss_function``."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wtacrs.facts import IGNORED
from wtacrs.layers.loss import CrossEntropyFunction
from wtacrs.swap import OwnForward

OWN_LOSS = "loss: not computed by transformers' own loss_function"


class LanguageModelLoss(OwnForward):
    """What a model calls for its loss: transformers' ``ForCausalLMLoss`` or ``ForMaskedLMLoss``.

    Args:
        module: the model.
        plain: the one of them that it stands for.
        shifts: whether tokens before n predict token n.
    """

    def __init__(self, module: nn.Module, plain: Any, shifts: bool) -> None:
        super().__init__(module)
        self.plain, self._shifts = plain, shifts

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor,
        vocab_size: int,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = IGNORED,
        shift_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        # A compiler fuses the plain one by itself; without gradients it keeps nothing; and an
        # evaluation is the plain one's, bit for bit.
        trains = logits.requires_grad and self.module.training
        if torch.compiler.is_compiling() or not trains:
            given = {"num_items_in_batch": num_items_in_batch, "ignore_index": ignore_index}
            given |= {} if shift_labels is None else {"shift_labels": shift_labels}
            loss: Tensor = self.plain(logits, labels, vocab_size, **given, **kwargs)
            return loss
        if self._shifts:
            shifted = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
            labels = shifted if shift_labels is None else shift_labels
        targets = labels.reshape(-1).to(logits.device)
        flat = logits.reshape(-1, vocab_size)
        made_of: Any = getattr(logits, "wtacrs_head", (None, None, None, None))
        x, weight, bias, version = made_of
        # Changed in place since, not of a head, or of one with more words than are counted.
        if version != logits._version or logits.shape[-1] != vocab_size:
            x = weight = bias = None
        else:
            x, flat = x.reshape(len(flat), -1), flat.detach()
        total = CrossEntropyFunction.apply(flat, targets, ignore_index, x, weight, bias)
        count = (targets != ignore_index).sum()
        if isinstance(num_items_in_batch, Tensor):
            num_items_in_batch = num_items_in_batch.to(total.device)
        return total / (count if num_items_in_batch is None else num_items_in_batch)


class NoteHead:
    """A forward hook of the head: its output bears what it was made of."""

    def __call__(self, head: nn.Linear, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        alone = len(head._forward_hooks) == 1  # or the output may be another's
        if alone and inputs and logits.requires_grad and not torch.compiler.is_compiling():
            made_of = inputs[0], head.weight, head.bias, logits._version
            logits.wtacrs_head = made_of  # type: ignore[attr-defined]


def save_less_of_loss_(model: nn.Module, left: dict[str, list[str]] | None = None) -> list[str]:
    """Have the language models in ``model`` keep less for their loss, in place.

    Args:
        left: gets the reason where ``model`` predicts words and its loss stays as it is.

    Returns:
        The qualified names of those that do; "" is the model itself.
    """
    chosen = []
    module: Any
    for name, module in model.named_modules():
        shifts = _plain_loss(module)
        if shifts is None:
            continue
        module.loss_function = LanguageModelLoss(module, module.loss_function, shifts)
        chosen.append(name)
        head: Any = module.get_output_embeddings()
        if type(head) is nn.Linear and "forward" not in head.__dict__:
            head.register_forward_hook(NoteHead())
    if left is not None and not chosen and _head_of(model) is not None:
        left[OWN_LOSS] = [type(model).__name__]
    return chosen


def _head_of(module: Any) -> Any:
    return getattr(module, "get_output_embeddings", lambda: None)()


def restore_loss_(model: nn.Module) -> None:
    """Undo ``save_less_of_loss_``, in place."""
    for module in model.modules():
        if isinstance(module.__dict__.get("_loss_function"), LanguageModelLoss):
            del module._loss_function
        for key, hook in [*module._forward_hooks.items()]:
            if isinstance(hook, NoteHead):
                del module._forward_hooks[key]


def _plain_loss(module: Any) -> bool | None:
    """Whether the loss of ``module``, a language model with a head, shifts; None of any other."""
    if not hasattr(type(module), "loss_function") or "_loss_function" in vars(module):
        return None
    if _head_of(module) is None:
        return None
    forward = inspect.unwrap(type(module).forward)
    if "loss_function" not in forward.__code__.co_names:  # T5, say, has a loss of its own
        return None
    from transformers.loss.loss_utils import ForCausalLMLoss, ForMaskedLMLoss

    return {ForCausalLMLoss: True, ForMaskedLMLoss: False}.get(module.loss_function)
