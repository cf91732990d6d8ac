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
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from experiments.errors import UserError
from experiments.models import new_model
from experiments.saving import save_memory
from experiments.text2text import is_text_to_text
from experiments.tuning import tune
from wtacrs import Sampler, recompute
from wtacrs.attention import recomputed
from wtacrs.measure.step import StepMemory, measure_step


class Rehearsal:
    """A model with its optimizer, as a plan's config describes them, ready to make fake steps.

    The model trains with dropout on; AdamW is fused and has its state already.

    Raises:
        UserError: the model cannot be had, or something asked for does not fit it.
    """

    def __init__(self, config: Any) -> None:
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
            self.optimizer = _adamw_with_state(self.model)
        # Each step is a second one, which has gradient norms to start from, whatever came before.
        self._second = None if self.sampler is None else self._state_after_a_step(self.sampler)

    def step(self, batch_size: int) -> tuple[StepMemory, int]:
        """The bytes and the floating-point operations of a step; each size is done once."""
        if batch_size not in self._done:
            with self._modes():
                batch, operations = self._batch(batch_size), Operations()

                def run() -> None:
                    with operations:
                        self._forward_and_backward(batch)

                memory = measure_step(self.model, self.optimizer, batch, step=run)
            self._done[batch_size] = memory, operations.total
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
        with self._fake, cuda_kernels() if self.config.device == "cuda" else nullcontext():
            yield

    def _batch(self, b: int) -> dict[str, Tensor]:
        """input_ids and attention_mask (b, t); labels: (b,) classes, (b, t) or targets."""
        ids = torch.ones(b, self.config.max_length, dtype=torch.long)
        answer = (b, self.config.target_length) if is_text_to_text(self.model.config) else (b,)
        if self.config.model.get("head") == "language_model":
            answer = b, self.config.max_length
        labels = torch.ones(answer, dtype=torch.long)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    def _forward_and_backward(self, batch: dict[str, Tensor]) -> None:
        if self.sampler is not None and self._second is not None:
            self.sampler.load_state_dict(self._second)
        self.model(**batch).loss.backward()

    def _state_after_a_step(self, sampler: Sampler) -> dict[str, Any]:
        """The sampler's state once each input has a history, from a forward pass alone."""
        with self._modes():
            self.model(**self._batch(1))
            norms = sampler.grad_norms
            norms.observe(norms.names, torch.zeros(len(norms.names), 1, 1), None, None)
            return sampler.state_dict()


def _adamw_with_state(model: nn.Module) -> torch.optim.AdamW:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


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
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out


@contextmanager
def cuda_kernels() -> Iterator[None]:
    """Gives functions whose CPU kernel keeps other bytes the kernel that CUDA would take, and takes
    back what the library does on a CPU alone.

    They are replaced where models look them up: a function mode of torch would be off in the
    backward pass, where a recomputation calls them again.
    """
    with (
        mock.patch.object(F, "dropout", _dropout),
        mock.patch.object(F, "scaled_dot_product_attention", _attention),
        mock.patch.object(recompute, "SLOW_TO_DRAW", ()),
        mock.patch.object(recomputed, "CACHE_BYTES", {}),
    ):
        yield


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """The fused kernel keeps a mask in bytes; the CPU's keeps it in the input's dtype."""
    if training and 0 < p < 1 and not inplace:
        return torch.native_dropout(input, p, True)[0]
    return torch.dropout_(input, p, training) if inplace else torch.dropout(input, p, training)


def _attention(
    query: Tensor,  # (b, h, t, d)
    key: Tensor,  # (b, h, s, d)
    value: Tensor,  # (b, h, s, d)
    attn_mask: Tensor | None = None,  # broadcasts to (b, h, t, s)
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The memory-efficient kernel, which keeps q, k, v, the mask, the output and a sum a row.

    The flash kernel, for which a mask is one too many, keeps the same. With dropout the CPU takes
    plain products, and keeps the probabilities (b, h, t, s).
    """
    aligned = 4 if query.dtype == torch.float32 else 8
    if enable_gqa or query.shape[-1] % aligned or value.shape[-1] % aligned:
        raise UserError(
            f"attention with {query.shape[-1]} features a head in {query.dtype}"
            f"{' and shared keys' if enable_gqa else ''} is none for CUDA's memory-efficient "
            "kernel, so what it keeps is not known; plan with memory.attention=eager"
        )
    b, h, t, s = *query.shape[:3], key.shape[2]
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.where(attn_mask, 0.0, float("-inf")).to(query.dtype)
        if s % 16:  # the kernel reads rows of the mask that are aligned
            attn_mask = F.pad(attn_mask, (0, 16 - s % 16))[..., :s]
        attn_mask = attn_mask.expand(b, h, t, s)
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    return kernel(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]
