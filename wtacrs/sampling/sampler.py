"""The owner of what the sampled layers of a model share: randomness, gradient norms, batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from wtacrs.config import SamplingConfig
from wtacrs.sampling.estimators import Selection, draw, fresh_generator, rows_kept
from wtacrs.sampling.grad_norms import Batch, GradNorms, NormRecord
from wtacrs.sampling.linear import SampledRows, compute_dtype
from wtacrs.sampling.weights import row_probabilities

Mask = Tensor | Mapping[str, Tensor]


@dataclass
class _SharedInput:
    """The selection for one input, which every layer that reads this input uses.

    The rows are held weakly: their owner is the autograd graph, and hooks that move saved tensors
    elsewhere (checkpointing, offloading) must be able to free them.
    """

    version: int  # of the input: an in-place change makes it another input
    selection: Selection
    record: NormRecord | None
    readers: set[str] = field(default_factory=set)
    rows: TensorWeakRef | None = None


class Sampler:
    """Chooses the rows that each sampled layer keeps. Made by ``sample_linears_``.

    Attributes:
        config: the ``SamplingConfig``.
        names: qualified names of the sampled layers.
        skipped: qualified name -> reason, for every other linear layer of the model.
        grad_norms: the estimates of ||dY_n||; ``grad_norms.host_bytes`` is what they take.
        rows_seen, rows_kept: rows that entered sampled layers while training, and rows saved.
    """

    def __init__(
        self,
        config: SamplingConfig,
        names: list[str],
        skipped: dict[str, str],
        num_samples: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self.config = config
        self.names = names
        self.skipped = skipped
        self.grad_norms = GradNorms(
            config.grad_norms, num_samples, max_tokens, config.norm_table_limit_gib
        )
        self.rows_seen = self.rows_kept = 0
        self._generators: dict[torch.device, torch.Generator] = {}
        self._sample_ids: Tensor | None = None
        self._mask: Mask | None = None
        self._overlaps = self._backward_ran = False
        self._inputs = WeakTensorKeyDictionary()  # input tensor -> _SharedInput

    def start_batch(self, sample_ids: Tensor | None = None, mask: Mask | None = None) -> None:
        """Tell the facts of the next batch, before its forward pass. Both are optional.

        They hold until that batch's backward pass has run. Inputs are taken as batch first.

        Args:
            sample_ids: (b,) int64, the positions of the samples in the training set. With them
                the per-sample table is used and updated.
            mask: (b, t), 1 or True for tokens that count, 0 for padding (an attention mask).
                Padding is never kept while another row is left. It must be exact: a row that is
                masked must have no gradient. It applies to every layer whose input is (b, t, i);
                where layers read sequences that are padded differently (encoder and decoder),
                give a mapping from glob patterns over layer names to masks: the first match
                counts, and layers without one have no mask.

        Raises:
            ValueError: sample ids out of range, a sequence longer than the table, wrong shapes.
        """
        self.grad_norms.flush()
        self._inputs.clear()
        masks = [] if mask is None else [mask] if isinstance(mask, Tensor) else [*mask.values()]
        for one in masks:
            if one.dim() != 2:
                raise ValueError(f"mask has shape {tuple(one.shape)}; give (batch, tokens)")
        if sample_ids is not None:
            if sample_ids.dim() != 1 or any(one.shape[0] != sample_ids.numel() for one in masks):
                raise ValueError(
                    f"sample_ids have shape {tuple(sample_ids.shape)} and the masks "
                    f"{[tuple(one.shape) for one in masks]}; give (batch,) and (batch, tokens)"
                )
            if sample_ids.is_floating_point():
                raise ValueError(f"sample_ids are {sample_ids.dtype}; give integers")
            sample_ids = sample_ids.to("cpu", torch.int64)
            self.grad_norms.check_ids(sample_ids)
            for one in masks:
                self.grad_norms.check_length(one.shape[1])
        had_facts = self._mask is not None or self._sample_ids is not None
        self._overlaps = had_facts and not self._backward_ran
        self._backward_ran = False
        self._sample_ids, self._mask = sample_ids, mask

    @torch.no_grad()
    def sample_rows(self, name: str, x: Tensor) -> SampledRows | None:
        """The rows of ``x`` (..., i) that layer ``name`` keeps, or None if it keeps them all.

        Layers that read the same tensor get the same rows, in the same storage.
        """
        flat = x.reshape(-1, x.shape[-1])  # (n, i)
        k = rows_kept(flat.shape[0], self.config.budget)
        exact = self.config.estimator == "full" or k >= flat.shape[0]
        self.rows_seen += flat.shape[0]
        self.rows_kept += flat.shape[0] if exact else k
        if exact:
            return None
        shared = self._inputs.get(x)
        # A layer that reads an input for the second time is in another forward pass: draw anew.
        if shared is None or shared.version != x._version or name in shared.readers:
            shared = self._select(name, x, flat, k)
            self._inputs[x] = shared
        shared.readers.add(name)
        if shared.record is not None:
            shared.record.layers = len(shared.readers)
        indices, scales = shared.selection
        if getattr(x.grad_fn, "keeps_output", False):
            return SampledRows(None, indices, scales, shared.record)
        dtype = compute_dtype(x)
        rows = None if shared.rows is None else shared.rows()
        if rows is None or rows.dtype != dtype:
            rows = flat.index_select(0, indices).to(dtype)  # (k, i)
            shared.rows = TensorWeakRef(rows)
        return SampledRows(rows, indices, scales, shared.record)

    def _select(self, name: str, x: Tensor, flat: Tensor, k: int) -> _SharedInput:
        batch = self.batch_of(name, x)
        norms = record = mask = None
        if batch is not None:
            if batch.sample_ids is not None:
                self.grad_norms.check_length(batch.t)
            norms = self.grad_norms.estimate(name, batch, x.device)
            mask = None if batch.mask is None else batch.mask.reshape(-1)
            self.grad_norms.expect(name)
            record = NormRecord(lambda dy: self._observe(name, batch, dy))
        probabilities = row_probabilities(flat, norms, mask, self.config.floor)
        selection = draw(self.config.estimator, probabilities, k, self._generator(x.device))
        return _SharedInput(x._version, selection, record)

    @torch.no_grad()
    def select_rows(self, rows: Tensor) -> Selection | None:
        """A draw of the budget's share of ``rows`` (n, f) by their norms, or None for all."""
        k = rows_kept(rows.shape[0], self.config.budget)
        if self.config.estimator == "full" or k >= rows.shape[0]:
            return None
        probabilities = row_probabilities(rows, None, None, self.config.floor)
        return draw(self.config.estimator, probabilities, k, self._generator(rows.device))

    def batch_of(self, name: str, x: Tensor) -> Batch | None:
        """The batch facts that fit ``x``, or None when nothing is known of its rows."""
        mask, ids = (self._mask_of(name), self._sample_ids) if self._facts_hold() else (None, None)
        if x.dim() >= 3:
            b, t = x.shape[:-2].numel(), x.shape[-2]
        elif mask is not None and isinstance(self._mask, Mapping) and mask.numel() == x.shape[0]:
            b, t = mask.shape  # flattened (b * t, i): only where a mask is named for this layer
        elif ids is not None and x.dim() == 2 and ids.numel() == x.shape[0]:
            b, t = x.shape[0], 1  # a sample is a row
        else:
            return None
        mask = mask if mask is not None and mask.shape == (b, t) else None
        return Batch(b, t, ids if ids is not None and ids.numel() == b else None, mask)

    def _facts_hold(self) -> bool:
        """Whether the current forward pass is of the batch that ``start_batch`` told of.

        A wrong mask would bias dW, no mask only costs variance. So in doubt there is none: in a
        new forward pass after the batch's backward pass, and in one that recomputes an earlier
        batch (activation checkpointing) while two are under way.
        """
        recomputes = torch._C._current_graph_task_id() != -1
        return not (self._overlaps if recomputes else self._backward_ran)

    def _observe(self, name: str, batch: Batch, norms: Tensor) -> None:
        self._backward_ran = True
        self.grad_norms.observe(name, batch, norms)

    def _mask_of(self, name: str) -> Tensor | None:
        if self._mask is None or isinstance(self._mask, Tensor):
            return self._mask
        return next((m for glob, m in self._mask.items() if fnmatchcase(name, glob)), None)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = fresh_generator(device, self.config.seed)
        return self._generators[device]

    def state_dict(self) -> dict[str, Any]:
        """Generator states and gradient norms: with them a resumed run is the same run."""
        generators = {str(device): g.get_state() for device, g in self._generators.items()}
        return {"generators": generators, "grad_norms": self.grad_norms.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self._generators.clear()
        for device, generator_state in state["generators"].items():
            self._generator(torch.device(device)).set_state(generator_state.cpu())
        self.grad_norms.load_state_dict(state["grad_norms"])
        self._inputs.clear()

    def __getstate__(self) -> dict[str, Any]:
        # For deepcopy and pickle: the facts of the current batch are not part of the sampler.
        self.grad_norms.flush()
        return {**self.__dict__, "_inputs": None, "_sample_ids": None, "_mask": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._inputs = WeakTensorKeyDictionary()
