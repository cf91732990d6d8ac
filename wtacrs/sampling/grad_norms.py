"""Estimates of ||dY_n||, made before the backward pass that would tell them.

||X_n|| alone is nearly worthless as a weight (relative squared error 3.7 against 0.004 at budget
0.3, ARCHITECTURE section 3), so the norms seen in earlier backward passes are remembered twice:

- per token position, a running mean over the batches: a few kB, good from the second batch on;
- per training sample and token, the last value seen: a host table of bf16, good from the second
  epoch on. Its bytes are reported by ``host_bytes``.

Layers that read the same input share one estimate, sqrt(sum_l ||dY_l,n||^2), the optimum for the
product of X with their stacked dY. A shared estimate is filed under the first of these layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

UNSEEN = -1.0  # a norm is never negative; NaN would not survive in sums
MEMORY = 0.9  # weight of the past in the running mean: about ten batches


class NormRecord:
    """Sums the squared norms of dY over the layers that read one input, then delivers the root.

    It holds no activation. A record whose layers do not all reach the backward pass (a recomputed
    forward pass, an unused output) delivers nothing and dies with its graph.
    """

    def __init__(self, deliver: Callable[[Tensor], None]) -> None:
        self.layers = 0
        self._deliver = deliver
        self._reported = 0
        self._squares: Tensor | None = None

    def report(self, norms: Tensor) -> None:
        """Take ||dY_n||, (n,), from one layer."""
        squares = norms.square()
        self._squares = squares if self._squares is None else self._squares + squares
        self._reported += 1
        if self._reported == self.layers:
            self._deliver(self._squares.sqrt())
            self._squares, self._reported = None, 0


@dataclass(frozen=True)
class Batch:
    """What is known of the rows of one layer's input: b samples by t tokens."""

    b: int
    t: int
    sample_ids: Tensor | None = None  # (b,) int64 on the host
    mask: Tensor | None = None  # (b, t), 1 for tokens that count


class PositionalMean:
    """Running mean of the squared norm per token position, over all samples seen."""

    def __init__(self) -> None:
        self.sums = torch.zeros(0)
        self.counts = torch.zeros(0)

    def _fit(self, t: int, device: torch.device) -> None:
        self.sums, self.counts = self.sums.to(device), self.counts.to(device)
        missing = t - self.sums.numel()
        if missing > 0:
            self.sums = torch.nn.functional.pad(self.sums, (0, missing))
            self.counts = torch.nn.functional.pad(self.counts, (0, missing))

    def observe(self, norms: Tensor, mask: Tensor | None) -> None:
        """Take the norms (b, t) of a batch. Non-finite ones, of a skipped step, are left out."""
        self._fit(norms.shape[1], norms.device)
        counted = torch.isfinite(norms).to(norms.dtype)
        if mask is not None:
            counted = counted * mask
        squares = torch.where(counted > 0, norms, 0.0).square()
        t = norms.shape[1]
        seen = counted.sum(0)
        # Positions that no sample of this batch reaches keep what they know.
        decay = torch.where(seen > 0, MEMORY, 1.0)
        self.sums[:t] = decay * self.sums[:t] + squares.sum(0)
        self.counts[:t] = decay * self.counts[:t] + seen

    def estimate(self, t: int, device: torch.device) -> Tensor:
        """(t,) root mean square norm; positions never seen get the mean over all, or 1."""
        self._fit(t, device)
        total = self.counts.sum()
        overall = torch.where(total > 0, self.sums.sum() / total.clamp(min=1e-30), 1.0)
        mean = self.sums / self.counts.clamp(min=1e-30)
        return torch.where(self.counts > 0, mean, overall)[:t].sqrt()


class GradNorms:
    """The estimates of all sampled layers of a model.

    Args:
        source: see ``SamplingConfig.grad_norms``.
        num_samples: rows of the training set, for the per-sample table.
        max_tokens: longest sequence in it.
        limit_gib: most host memory for the table.
    """

    def __init__(
        self,
        source: str,
        num_samples: int | None = None,
        max_tokens: int | None = None,
        limit_gib: float = 4.0,
    ) -> None:
        if (num_samples is None) != (max_tokens is None) or min(
            num_samples or 1, max_tokens or 1
        ) < 1:
            raise ValueError(
                f"num_samples={num_samples}, max_tokens={max_tokens}: give both, each at least 1, "
                "or neither; they are the shape of the gradient-norm table"
            )
        has_shape = num_samples is not None
        if source == "sample" and not has_shape:
            raise ValueError(
                "grad_norms='sample' keeps a norm per training sample and token: give "
                "num_samples and max_tokens, or choose grad_norms='position'"
            )
        self.source = source
        keeps_table = has_shape and source in ("auto", "sample")
        self.table_shape = (num_samples or 0, max_tokens or 0) if keeps_table else None
        self.limit_gib = limit_gib
        self._inputs: set[str] = set()
        self._means: dict[str, PositionalMean] = {}
        self._tables: dict[str, Tensor] = {}  # (num_samples, max_tokens) bf16 on the host
        # (input, sample_ids, norms on the device), waiting for the next flush
        self._pending: list[tuple[str, Tensor, Tensor]] = []

    def check_ids(self, sample_ids: Tensor) -> None:
        """Raise ValueError for sample ids that the table has no row for."""
        if self.table_shape is None or not sample_ids.numel():
            return
        num_samples = self.table_shape[0]
        lowest, highest = int(sample_ids.min()), int(sample_ids.max())
        if lowest < 0 or highest >= num_samples:
            raise ValueError(
                f"sample ids {lowest}..{highest} leave the range 0..{num_samples - 1} of the "
                "gradient-norm table; number the training samples from 0, or raise num_samples"
            )

    def check_length(self, t: int) -> None:
        """Raise ValueError for a sequence longer than the table."""
        if self.table_shape is not None and t > self.table_shape[1]:
            raise ValueError(
                f"a sequence of {t} tokens is longer than the gradient-norm table's "
                f"max_tokens={self.table_shape[1]}; truncate the data or raise max_tokens"
            )

    def expect(self, name: str) -> None:
        """Make sure, in the first forward pass, that the table for input ``name`` will fit.

        Raises:
            ValueError: the tables of all inputs would exceed the limit.
        """
        if self.table_shape is None or name in self._inputs:
            return
        num_samples, max_tokens = self.table_shape
        inputs = len(self._inputs) + 1
        gib = inputs * num_samples * max_tokens * 2 / 2**30
        if gib > self.limit_gib:
            raise ValueError(
                f"gradient norms of {num_samples} samples x {max_tokens} tokens x at least "
                f"{inputs} layer inputs in bf16 need {gib:.3g} GiB of host memory, over "
                f"norm_table_limit_gib={self.limit_gib:g}; raise the limit, or choose "
                "grad_norms='position', which needs almost nothing"
            )
        self._inputs.add(name)

    def estimate(
        self, name: str, batch: Batch, device: torch.device, source: str | None = None
    ) -> Tensor | None:
        """(b * t,) estimate of ||dY_n|| for the layer ``name``, or None where nothing is known.

        ``source`` asks for another source than the configured one, to compare them.
        """
        source = source or self.source
        if source == "none" or name not in self._means:
            return None
        mean = self._means[name].estimate(batch.t, device).expand(batch.b, batch.t)
        if source == "sample":
            mean = mean.square().mean().sqrt().expand(batch.b, batch.t)
        if source != "position" and batch.sample_ids is not None and name in self._tables:
            seen = self._tables[name][batch.sample_ids, : batch.t].to(device, non_blocking=True)
            mean = torch.where(seen >= 0, seen.to(mean.dtype), mean)
        return mean.reshape(-1)

    def observe(self, name: str, batch: Batch, norms: Tensor) -> None:
        """Take ||dY_n||, (b * t,), from the backward pass. Nothing waits for the device here."""
        if self.source == "none":
            return
        norms = norms.detach().reshape(batch.b, batch.t)
        if name not in self._means:
            self._means[name] = PositionalMean()
        self._means[name].observe(norms, batch.mask)
        if self.table_shape is not None and batch.sample_ids is not None:
            # Padding is stored as zero: it is masked whenever the sample comes again.
            kept = torch.where(torch.isfinite(norms), norms, UNSEEN)
            self._pending.append((name, batch.sample_ids, kept.bfloat16()))

    def flush(self) -> None:
        """Write pending norms into the host table; on a GPU this waits for the last backward."""
        for name, sample_ids, norms in self._pending:
            if name not in self._tables and self.table_shape is not None:
                self._tables[name] = torch.full(self.table_shape, UNSEEN, dtype=torch.bfloat16)
            self._tables[name][sample_ids, : norms.shape[1]] = norms.cpu()
        self._pending.clear()

    @property
    def host_bytes(self) -> int:
        """Bytes of the per-sample table."""
        return sum(table.nbytes for table in self._tables.values())

    def state_dict(self) -> dict[str, Any]:
        self.flush()
        return {
            "means": {
                name: (m.sums.clone().cpu(), m.counts.clone().cpu())
                for name, m in self._means.items()
            },
            "tables": {name: table.clone() for name, table in self._tables.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, table in state["tables"].items():
            if tuple(table.shape) != self.table_shape:
                raise ValueError(
                    f"the saved gradient norms of {name!r} have shape {tuple(table.shape)}, this "
                    f"sampler's table {self.table_shape}; give the same num_samples and max_tokens"
                )
        self._pending.clear()
        self._tables = {name: table.clone() for name, table in state["tables"].items()}
        self._means = {}
        for name, (sums, counts) in state["means"].items():
            mean = self._means[name] = PositionalMean()
            mean.sums, mean.counts = sums.clone(), counts.clone()
