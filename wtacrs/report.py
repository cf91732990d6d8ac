"""What was swapped in a model, what was left and why, and what a step takes: a table."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from wtacrs.integrations.fake import experts_on_fakes
from wtacrs.layers import plain_after_all
from wtacrs.measure.step import StepMemory, measure_step
from wtacrs.measure.watch import pattern
from wtacrs.sampling.sampler import Sampler

SHOWN = 4  # patterns of names in a line
MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Report:
    """What ``Handle.report`` found; ``print`` shows it as a table.

    Attributes:
        swapped: kind of swap -> qualified names of the modules that it changed.
        left: reason -> qualified names of the modules that stay as they are for it.
        sampled_share: of the trainable parameters, those whose gradient is estimated.
        plain, now: bytes of a training step without and with the swaps; None without a batch.
        better: the preset with the smallest peak, where the swaps do not lower it.
    """

    swapped: Mapping[str, list[str]]
    left: Mapping[str, list[str]]
    sampled_share: float
    plain: StepMemory | None = None
    now: StepMemory | None = None
    better: str | None = None

    def __str__(self) -> str:
        lines = [f"{kind:<28} {_names(names)}" for kind, names in self.swapped.items()]
        lines += [f"{'left: ' + why:<28} {_names(names)}" for why, names in self.left.items()]
        lines.append(f"{'estimated gradients':<28} {self.sampled_share:.1%} of the parameters")
        if self.plain is not None and self.now is not None:
            for what in ("saved_bytes", "peak_bytes"):
                before, after = getattr(self.plain, what), getattr(self.now, what)
                unit, name = (GIB, "GiB") if before >= GIB else (MIB, "MiB")
                text = f"{before / unit:.2f} -> {after / unit:.2f} {name}, {before / after:.2f}x"
                lines.append(f"{what.replace('_', ' '):<28} {text}")
            if self.now.peak_bytes >= self.plain.peak_bytes:
                hint = f"{self.better!r} would" if self.better else "no preset would"
                lines.append(
                    f"{'warning':<28} the peak of such a step is not lower; {hint} lower it"
                )
        return "\n".join(lines)


def _names(names: list[str]) -> str:
    counts = Counter(map(pattern, names))
    shown = [f"{name} ({count})" for name, count in counts.most_common(SHOWN)]
    return ", ".join(shown) + (f", {len(counts) - SHOWN} more" if len(counts) > SHOWN else "")


def changes(
    model: nn.Module,
    swapped: Mapping[str, list[str]],
    left: Mapping[str, list[str]],
    sampler: Sampler | None,
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """``swapped`` and ``left`` of a handle as they are by now, with what ``sampler`` skips."""
    reasons = {} if sampler is None else dict(sampler.skipped)
    reasons |= (plain := plain_after_all(model))
    left = {reason: [*names] for reason, names in left.items()}
    for name, reason in reasons.items():
        left.setdefault(reason, []).append(name)
    still = {kind: [n for n in names if n not in plain] for kind, names in swapped.items()}
    return {kind: names for kind, names in still.items() if names}, left


def sampled_share(model: nn.Module, sampler: Sampler | None) -> float:
    """Share of the trainable parameters that are weights which ``sampler`` samples."""
    if sampler is None:
        return 0.0
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    names = [f"{name}.weight" for name in sampler.names] + sampler.experts
    weights = {model.get_parameter(name) for name in names}
    return sum(w.numel() for w in weights if w.requires_grad) / max(1, sum(trained))


def fake_step(
    model: nn.Module, batch: Mapping[str, Tensor], change: Callable[[nn.Module], object]
) -> StepMemory:
    """The bytes of a training step of a copy of ``model`` on fake tensors, after ``change``."""
    if any(p.is_meta for p in model.parameters()):
        raise ValueError(
            f"the weights of this {type(model).__name__} are on the meta device, so there is no "
            "step to measure; report a batch once they are loaded"
        )
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(mode):
        copied = copy.deepcopy(model)
    with mode, experts_on_fakes(), torch.random.fork_rng():
        fakes = {
            name: mode.from_tensor(value) if isinstance(value, Tensor) else value
            for name, value in batch.items()
            if name != "sample_ids"  # they cost no memory, and no plain model knows them
        }
        change(copied.train())
        trained = [p for p in copied.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.0)
        tensors = {name: value for name, value in fakes.items() if isinstance(value, Tensor)}
        return measure_step(
            copied, optimizer, tensors, step=lambda: _loss(copied, fakes).backward()
        )


def _loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    loss = getattr(model(**batch), "loss", None)
    if not isinstance(loss, Tensor):
        raise ValueError(
            f"the model's output of {', '.join(batch)} has no loss, so there is no step to "
            "measure; give a batch with labels, the arguments of a training call"
        )
    return loss
