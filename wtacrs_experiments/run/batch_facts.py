"""What is counted of training steps while they pass: samples, tokens, losses."""

from __future__ import annotations

from statistics import fmean as mean
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from wtacrs.facts import IGNORED
from wtacrs_experiments.run.ranks import gather
from wtacrs_experiments.run.text2text import is_text_to_text

CURVE_STEPS = 10  # of a point


class BatchFacts(TrainerCallback):
    """A hook of a model and a callback, which count what training steps process.

    A step is the optimizer's, of one batch or of several whose gradients are added up. Sums stay on
    the device, since reading one stops it (``Divergence`` does, once a step), and are added to in
    place: nothing grows with the run, and a step whose memory is measured shows none of ours.

    Attributes:
        samples: of each step.
        tokens: sum of the non-padding ones after the first ``warmup_steps`` steps (source and
            target, where the answer is text).
        loss_sum, steps: of the losses, in float64, and how many they are; those before a
            resumption too.
        curve: the mean loss of each ten steps, and the number of the last of them.
    """

    def __init__(self, model: PreTrainedModel, warmup_steps: int = 0) -> None:
        self.warmup_steps = warmup_steps
        self.samples: list[int] = []
        self.tokens: Tensor | int = 0
        self.loss_sum: Tensor | float = 0.0
        self.steps = 0
        self.curve: dict[str, list[float]] = {"step": [], "loss": []}
        self._samples = 0  # of the step that is under way
        self._sum_before = 0.0  # of the point of the curve that comes next
        self._text_to_text = is_text_to_text(getattr(model, "config", None))
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if model.training:
            mask = kwargs["attention_mask"]
            self._samples += mask.shape[0]
            tokens = mask.sum(dtype=torch.int64)
            if self._text_to_text:
                tokens = tokens + (kwargs["labels"] != IGNORED).sum()
            total = torch.as_tensor(self.tokens, device=tokens.device)
            self.tokens = total.add_(tokens, alpha=int(len(self.samples) >= self.warmup_steps))

    def add(self, loss: Tensor) -> None:
        """Add the loss of a batch, as the Trainer scales it: those of a step sum up to its loss."""
        total = torch.as_tensor(self.loss_sum, dtype=torch.float64, device=loss.device)
        self.loss_sum = total.add_(loss.detach())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.samples.append(self._samples)
        self._samples = 0
        self.steps += 1
        if self.steps % CURVE_STEPS == 0:
            now = float(self.loss_sum)
            self.curve["step"].append(self.steps)
            self.curve["loss"].append((now - self._sum_before) / CURVE_STEPS)
            self._sum_before = now

    @property
    def mean_loss(self) -> float:
        """Mean loss over all training steps so far; not finite once a loss was not."""
        return mean(gather([float(self.loss_sum) / self.steps]))

    @property
    def mean_curve(self) -> dict[str, list[float]]:
        """``curve``, its losses the means over processes."""
        losses = zip(*gather([self.curve["loss"]]), strict=True)
        return {"step": self.curve["step"], "loss": [mean(each) for each in losses]}

    def state_dict(self) -> dict[str, Any]:
        """What the losses of the whole run need; times, and so tokens, are of each part."""
        losses = {"loss_sum": float(self.loss_sum), "steps": self.steps}
        return {**losses, "curve": self.curve, "sum_before": self._sum_before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self.loss_sum, self.steps = state["loss_sum"], state["steps"]
        self.curve, self._sum_before = state["curve"], state["sum_before"]
