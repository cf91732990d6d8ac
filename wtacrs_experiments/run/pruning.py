"""A smaller block from a larger one: the features of the largest weights stay (magnitude pruning).

For the side network of Ladder Side-Tuning (arXiv 2206.06522), which begins as a pruned backbone. Of
the features of the residual stream (one choice for all blocks, so that a sum of two blocks' outputs
means the same), of each head and of each feed-forward layer, those stay whose weights have the
largest sum of magnitudes. The paper's choice by Fisher information needs data; magnitude, which it
compares with, does not.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from wtacrs_experiments.errors import UserError

SIZES = {  # of a model type: what its config calls the sizes that are divided by r
    "t5": ("d_model", "d_kv", "d_ff"),
    "bert": ("hidden_size", "intermediate_size"),
    "mpnet": ("hidden_size", "intermediate_size"),
}
# Ends of the names of layers -> what their rows and their columns are features of.
FEATURES = (
    (("q", "k", "v", "query", "key", "value"), ("heads", "stream")),
    (("o", "attention.output.dense"), ("stream", "heads")),
    (("wi", "wi_0", "wi_1", "intermediate.dense"), ("inner", "stream")),
    (("wo", "output.dense"), ("stream", "inner")),
)
Scores = dict[tuple[str, str], Tensor]  # (attention or feed-forward layer, kind) -> a feature each


def smaller(config: PreTrainedConfig, reduction: int) -> PreTrainedConfig:
    """The config of a side block: 1 / ``reduction`` of each size, as many heads.

    Raises:
        UserError: a size, or that of a head, is no multiple of ``reduction``.
    """
    small = copy.deepcopy(config)
    sizes = {name: getattr(config, name) for name in SIZES[config.model_type]}
    if config.model_type != "t5":
        sizes["a head's size"] = config.hidden_size // config.num_attention_heads
    for name, size in sizes.items():
        if size % reduction:
            raise UserError(f"tuning.reduction={reduction} does not divide {name}, {size}")
        if hasattr(config, name):
            setattr(small, name, size // reduction)
    return small


def magnitudes(block: nn.Module) -> Scores:
    """Of each feature: the sum of the magnitudes of the weights that read or write it."""
    scores: Scores = defaultdict(lambda: torch.zeros(()))
    for name, parameter in block.named_parameters():
        for axis, feature in enumerate(_features(name)):
            others = [other for other in range(parameter.dim()) if other != axis]
            size = parameter.detach().abs()
            scores[feature] = scores[feature] + (size.sum(others) if others else size)
    return dict(scores)


def largest(scores: Tensor, groups: int, reduction: int) -> Tensor:
    """The indices of the largest 1 / ``reduction`` of the ``scores`` in each group, ascending."""
    each = scores.view(groups, -1)
    best = each.topk(each.shape[1] // reduction, dim=1).indices.sort(dim=1).values
    return (best + torch.arange(groups, device=best.device)[:, None] * each.shape[1]).flatten()


def pruned(
    block: nn.Module, small: Any, index: int, kept: dict[tuple[str, str], Tensor]
) -> nn.Module:
    """A block of the class of ``block`` and the sizes of ``small``, of the features ``kept``."""
    numbered = {} if small.model_type == "mpnet" else {"layer_idx": index}
    side = type(block)(small, **numbered)
    for name, parameter in side.named_parameters():
        weight: Tensor = block.get_parameter(name)
        for axis, feature in enumerate(_features(name)):
            weight = weight.index_select(axis, kept[feature])
        copy_weights(parameter, weight)
    for name, module in side.named_modules():
        if hasattr(module, "config"):  # one for both: which attention is chosen later, in it
            module.config = block.get_submodule(name).config
    return side


def _features(parameter: str) -> tuple[tuple[str, str], ...]:
    """What the rows, and the columns, of a block's parameter are features of; () for no weight."""
    layer, _, _ = parameter.rpartition(".")
    if layer.endswith("relative_attention_bias"):
        return ()
    kinds: tuple[str, ...] = ("stream",)  # a norm's
    for ends, both in FEATURES:
        if f".{layer}".endswith(tuple(f".{end}" for end in ends)):
            kinds = both if parameter.endswith("weight") else both[:1]
            break
    # T5's blocks have two layers that attend: "layer.0" and "layer.1".
    where = ".".join(layer.split(".")[:2]) if layer.startswith("layer.") else ""
    return tuple(("" if kind == "stream" else where, kind) for kind in kinds)


@torch.no_grad()
def copy_weights(parameter: Tensor, values: Tensor) -> None:
    """In place, unseen by autograd."""
    parameter.copy_(values)
