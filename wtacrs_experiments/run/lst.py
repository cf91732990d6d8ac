"""Ladder Side-Tuning (Sung, Cho and Bansal, arXiv 2206.06522): a backbone without gradients.

Beside block i of the frozen backbone, whose output is h_i (b, t, d), runs a block of the same class
and of 1 / r of its sizes, on states s_i (b, t, d / r):

    s_0 = D_0 h_0,   s_i = side_i(mu_i s_{i-1} + (1 - mu_i) D_i h_i),   mu_i = sigmoid(a_i / T)

with h_0 the embeddings, T = 0.1 and a_i = 0 at first. The head reads U s_L in place of h_L. Trained
are D, U, a, the side blocks and a new head; kept for the backward pass are the side's activations
and the inputs h_i of the D_i, in place of all that is inside the backbone.

Side blocks begin as pruned backbone blocks (``pruning``). As in the authors' code the side attends
with the backbone's position bias, its decoder reads its encoder, and dropout stays on in both; here
each block has a side, where theirs leaves out one in four of T5-Base.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wtacrs_experiments.errors import UserError
from wtacrs_experiments.run.pruning import SIZES, copy_weights, largest, magnitudes, pruned, smaller

TEMPERATURE = 0.1  # T, of the gates


def ladder_(model: PreTrainedModel, reduction: int) -> None:
    """Freeze ``model`` and put a side network beside it, in place.

    Its blocks become rungs that hold the block and its side; names of parameters gain "backbone".

    Raises:
        UserError: a model type without a ladder, or sizes that ``reduction`` does not divide.
    """
    model.requires_grad_(False)
    if model.config.model_type == "t5":
        for stack in (model.encoder, model.decoder):
            rungs, stream = climb(stack.block, stack.config, reduction, _T5Rung)
            norm = stack.final_layer_norm
            side_norm = type(norm)(len(stream), eps=norm.variance_epsilon)
            copy_weights(side_norm.weight, norm.weight[stream])
            stack.block = rungs
            if stack.is_decoder:
                dropout = nn.Dropout(stack.config.dropout_rate)
                up = nn.Linear(len(stream), stack.config.d_model)
                stack.final_layer_norm = _DecoderEnd(side_norm, dropout, up)
            else:
                stack.final_layer_norm = _EncoderEnd(norm, side_norm)
    elif model.config.model_type in SIZES:
        encoder = model.base_model.encoder
        encoder.layer, stream = climb(encoder.layer, model.config, reduction, _EncoderRung)
        encoder.layer[-1].up = nn.Linear(len(stream), model.config.hidden_size)
    else:
        raise UserError(
            f"tuning=lst has no ladder for model_type {model.config.model_type!r}; "
            f"choose a model of type {', '.join(SIZES)}, or another tuning"
        )


def climb(
    blocks: Iterable[nn.Module], config: Any, reduction: int, rung: type[Rung]
) -> tuple[nn.ModuleList, Tensor]:
    """The rungs of one stack of blocks, and which features of its residual stream the sides have.

    Raises:
        UserError: sizes that ``reduction`` does not divide.
    """
    blocks = list(blocks)
    small = smaller(config, reduction)
    heads = getattr(config, "num_heads", None) or config.num_attention_heads
    every = [magnitudes(block) for block in blocks]
    stream = largest(torch.stack([scores["", "stream"] for scores in every]).sum(0), 1, reduction)
    rungs = nn.ModuleList()
    for i, (block, scores) in enumerate(zip(blocks, every, strict=True)):
        wide, narrow = len(scores["", "stream"]), len(stream)
        kept = {
            name: largest(score, heads if name[1] == "heads" else 1, reduction)
            for name, score in scores.items()
        }
        kept["", "stream"] = stream
        rungs.append(rung(block, pruned(block, small, i, kept), wide, narrow, first=i == 0))
    return rungs, stream


State = tuple[Tensor, Tensor]  # of the backbone (b, t, d) and of the side (b, t, d / r)


class Rung(nn.Module):
    """A block of the frozen backbone, its side, and the gated shortcut between them."""

    def __init__(
        self, backbone: nn.Module, side: nn.Module, wide: int, narrow: int, first: bool
    ) -> None:
        super().__init__()
        self.backbone, self.side = backbone, side
        self.enter = nn.Linear(wide, narrow) if first else None  # D_0
        self.down = nn.Linear(wide, narrow)
        self.gate = nn.Parameter(torch.zeros(1))  # a
        self.up: nn.Linear | None = None

    def begin(self, state: Tensor | State) -> State:
        """The states that come in; of the embeddings, a tensor yet, at the first rung."""
        if self.enter is None:
            assert isinstance(state, tuple)
            return state
        assert isinstance(state, Tensor)
        return state, self.enter(state)

    def mix(self, side: Tensor, backbone: Tensor) -> Tensor:
        """The input (b, t, d / r) of the side block."""
        mu = torch.sigmoid(self.gate / TEMPERATURE)
        return mu * side + (1 - mu) * self.down(backbone)


class _EncoderRung(Rung):
    """Of BERT and MPNet; the last one has ``up``, U, and returns what the head reads."""

    def forward(self, state: Tensor | State, *args: Any, **kwargs: Any) -> Any:
        backbone, side = self.begin(state)
        with torch.no_grad():
            found = self.backbone(backbone, *args, **kwargs)
        backbone = found[0] if isinstance(found, tuple) else found
        side = self.side(self.mix(side, backbone), *args, **kwargs)
        side = side[0] if isinstance(side, tuple) else side
        out = (backbone, side) if self.up is None else self.up(side)
        return (out,) if isinstance(found, tuple) else out


class _T5Rung(Rung):
    """Of T5; ``encoded`` (b, s, d + d / r) is both states of the encoder, from ``_EncoderEnd``."""

    def forward(
        self,
        state: Tensor | State,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        encoded: Tensor | None = None,
        encoded_mask: Tensor | None = None,
        cross_bias: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[State, Tensor | None, Tensor | None]:
        backbone, side = self.begin(state)
        wide = backbone.shape[-1]
        source, side_source = (None, None)
        if encoded is not None:
            source, side_source = encoded[..., :wide], encoded[..., wide:]
        with torch.no_grad():
            given = attention_mask, position_bias, source, encoded_mask, cross_bias
            backbone, bias, cross = self.backbone(backbone, *given, **kwargs)
        given = attention_mask, bias, side_source, encoded_mask, cross
        side, _, _ = self.side(self.mix(side, backbone), *given, **kwargs)
        return (backbone, side), bias, cross


class _EncoderEnd(nn.Module):
    """Both final norms of T5's encoder; (b, s, d + d / r)."""

    def __init__(self, backbone: nn.Module, side: nn.Module) -> None:
        super().__init__()
        self.backbone, self.side = backbone, side

    def forward(self, state: State) -> Tensor:
        return torch.cat([self.backbone(state[0]), self.side(state[1])], dim=-1)


class _DecoderEnd(nn.Sequential):
    """The side's final norm and dropout, and U: what T5's output layer reads (b, t, d)."""

    def forward(self, state: State) -> Tensor:
        return super().forward(state[1])
