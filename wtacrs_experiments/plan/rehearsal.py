"""A training step without data, weights or device: everything is done on fake tensors.

Fake tensors have shapes and storages, and no content, so the step allocates and frees what the real
one would, in the same order, in seconds and in next to no memory. They are CPU tensors whatever is
planned: where CUDA's kernels keep other bytes than the CPU's, ``cuda_kernels`` puts these in their
place. What no kernel returns is not seen: scratch memory inside one kernel, the allocator's
rounding and fragmentation, the CUDA context (about half a GiB).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers.optimization import Adafactor

from wtacrs import Sampler
from wtacrs.integrations.fake import experts_on_fakes
from wtacrs.measure.step import StepMemory, measure_step
from wtacrs_experiments.config import PlanConfig
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.plan.kernels import cuda_kernels
from wtacrs_experiments.run.memory import save_memory
from wtacrs_experiments.run.models import new_model
from wtacrs_experiments.run.text2text import is_text_to_text
from wtacrs_experiments.run.tuning import tune


class Rehearsal:
    """A model with its optimizer, as a plan's config describes them, ready to make fake steps.

    The model trains with dropout on; the optimizer has its state already.

    Raises:
        UserError: the model cannot be had, or something asked for does not fit it.
    """

    def __init__(self, config: PlanConfig) -> None:
        self.config = config
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._done: dict[int, tuple[StepMemory, int]] = {}
        with torch.device("meta"):  # where modules can still be cast and moved, as tuning does
            self.model = new_model(config.model)
            self._check_length()
            tune(self.model, config.tuning)
            self.sampler = save_memory(self.model, config, 1, config.max_length).sampler
        if config.precision == "bf16":
            self.model.bfloat16()
        with self._fake:
            self.model.to_empty(device="cpu").tie_weights()
            self.model.train()
            self.optimizer = _optimizer_with_state(self.model, config)
        # Each step is a second one, which has gradient norms to start from, whatever came before.
        self._second = None if self.sampler is None else self._state_after_a_step(self.sampler)

    def step(self, batch_size: int) -> tuple[StepMemory, int]:
        """The bytes and the floating-point operations of a step; each size is done once."""
        if batch_size not in self._done:
            with self._modes():
                batch, operations = self._batch(batch_size), Operations()

                def run() -> None:
                    operations.total = 0
                    with operations:
                        self._forward_and_backward(batch)

                several = self.config.gradient_accumulation_steps
                try:
                    memory = measure_step(
                        self.model, self.optimizer, batch, step=run, accumulates=several > 1
                    )
                except (RuntimeError, OverflowError) as error:
                    if "overflow" not in str(error).lower():
                        raise
                    raise UserError(
                        f"batch_size={batch_size} of max_length={self.config.max_length} cannot be "
                        "planned: tensors would have more elements than can be counted"
                    ) from error
            self._done[batch_size] = memory, operations.total * several
        return self._done[batch_size]

    def peak_bytes(self, batch_size: int) -> int:
        """The peak of a step."""
        return self.step(batch_size)[0].peak_bytes

    def _check_length(self) -> None:
        longest = getattr(self.model.config, "max_position_embeddings", None)
        if longest is not None and self.config.max_length > longest:
            raise UserError(
                f"max_length={self.config.max_length} is more than the {longest} positions of "
                f"model={self.config.model.name}"
            )

    @contextmanager
    def _modes(self) -> Iterator[None]:
        kernels = cuda_kernels() if self.config.device == "cuda" else nullcontext()
        with self._fake, experts_on_fakes(), kernels:
            yield

    def _batch(self, b: int) -> dict[str, Tensor]:
        """input_ids and attention_mask (b, t); labels: (b,) classes, (b, t) or targets."""
        ids = torch.ones(b, self.config.max_length, dtype=torch.long)
        answer = (b, self.config.target_length) if is_text_to_text(self.model.config) else (b,)
        if self.config.model.head == "language_model":
            answer = b, self.config.max_length
        labels = torch.ones(answer, dtype=torch.long)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    def _forward_and_backward(self, batch: dict[str, Tensor]) -> None:
        if self.sampler is not None and self._second is not None:
            self.sampler.load_state_dict(self._second)
        self._loss(batch).backward()

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Under autocast where a run would be; the backward pass, as in a run, is not."""
        autocast = self.config.precision == "bf16-autocast"
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss: Tensor = self.model(**batch).loss
        return loss

    def _state_after_a_step(self, sampler: Sampler) -> dict[str, Any]:
        """The sampler's state once each input has a history, from a forward pass alone."""
        with self._modes():
            self._loss(self._batch(1))
            norms = sampler.grad_norms
            norms.observe(norms.names, torch.zeros(len(norms.names), 1, 1), None, None)
            return sampler.state_dict()


def _optimizer_with_state(model: nn.Module, config: PlanConfig) -> torch.optim.Optimizer:
    """The Trainer's, after a step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adafactor":
        optimizer = Adafactor(trained, lr=1e-3, scale_parameter=False, relative_step=False)
    elif config.optimizer == "adamw_torch":
        optimizer = torch.optim.AdamW(trained, foreach=config.device == "cuda")
    else:
        optimizer = torch.optim.AdamW(trained, fused=True)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def _grouped(a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> int:
    """Of (s, i) rows with the (e, i, o) weights of their experts, or of (i, s) with (s, o)."""
    return 2 * a.numel() * b.shape[-1]


aten = torch.ops.aten
FORMULAS = {
    **flop_registry,  # which lacks the CPU's fused attention
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        aten._scaled_dot_product_flash_attention
    ],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
    aten._grouped_mm: _grouped,
    torch.ops.wtacrs.grouped_product: _grouped,
}
if hasattr(torch.ops.transformers, "grouped_mm_fallback"):
    FORMULAS[torch.ops.transformers.grouped_mm_fallback] = _grouped
    FORMULAS[torch.ops.transformers.grouped_mm_fallback_backward] = lambda *args, **kwargs: (
        2 * _grouped(*args)
    )


class Operations(TorchDispatchMode):
    """Counts the floating-point operations of matrix products and attention, as torch does.

    Attributes:
        total: operations so far, two for a multiplication and its addition.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = FORMULAS.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out
