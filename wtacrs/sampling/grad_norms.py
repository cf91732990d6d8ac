"""Estimates of ||dY_n||, made before the backward pass that would tell them.

||X_n|| alone is nearly worthless as a weight (ARCHITECTURE section 3), so the norms seen in earlier
backward passes are remembered twice:

- per token position, a running mean over the batches: a few kB, good from the second batch on;
- per training sample and token, the last value seen: a host table of bf16, good from the second
  epoch on. What has grown since is drawn too rarely, with a large scale: hence "defensive".

Layers of one input share one estimate, sqrt(sum_l ||dY_l,n||^2), the optimum for the product of X
with their stacked dY, under the first one's name. All inputs are stacked: one read, one write.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wtacrs.sampling.together import are_several

UNSEEN = -1.0  # a norm is never negative; NaN would not survive in sums
PAST = 0.9  # weight of the past in the running mean: about ten batches
RENEWED = 0.3  # share of its positions' mean in the squared size of a sample
DEFENCE = 0.1  # share of its position's mean in the norm of a row


class GradNorms:
    """The estimates of all sampled inputs of a model.

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
        given = [size for size in (num_samples, max_tokens) if size is not None]
        if len(given) == 1 or min(given, default=1) < 1:
            raise ValueError(
                f"num_samples={num_samples}, max_tokens={max_tokens}: give both, each at least 1, "
                "or neither; they are the shape of the gradient-norm table"
            )
        if source == "sample" and not given:
            raise ValueError(
                "grad_norms='sample' keeps a norm per training sample and token: give "
                "num_samples and max_tokens, or choose grad_norms='position'"
            )
        self.source = source
        keeps_table = given and source in ("auto", "sample", "defensive")
        self.table_shape = (num_samples or 0, max_tokens or 0) if keeps_table else None
        self.limit_gib = limit_gib
        self._places: dict[str, int] = {}  # input -> its place l in what is stacked
        # Running sums of squares and of rows by token position, (l, t).
        self._sums = torch.zeros(0, 0, dtype=torch.float64)
        self._counts = torch.zeros(0, 0, dtype=torch.float64)
        self._indices: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}
        self._table: Tensor | None = None  # (l, num_samples, max_tokens) bf16 on the host
        self._own: list[Tensor] = []  # seen since processes last met, (b,) each

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
        """Make a place for the input ``name``, in the first forward pass.

        Raises:
            ValueError: the tables of all inputs would exceed the limit.
        """
        if name in self._places or self.source == "none":
            return
        inputs = len(self._places) + 1
        if self.table_shape is not None:
            num_samples, max_tokens = self.table_shape
            gib = inputs * num_samples * max_tokens * 2 / 2**30
            if gib > self.limit_gib:
                raise ValueError(
                    f"gradient norms of {num_samples} samples x {max_tokens} tokens x at least "
                    f"{inputs} layer inputs in bf16 need {gib:.3g} GiB of host memory, over "
                    f"norm_table_limit_gib={self.limit_gib:g}; raise the limit, or choose "
                    "grad_norms='position', which needs almost nothing"
                )
        self._places[name] = inputs - 1

    @property
    def names(self) -> list[str]:
        """The inputs, in the order in which they are stacked."""
        return [*self._places]

    def order(self, name: str) -> int:
        """The place of the input ``name`` in this order."""
        return self._places.get(name, 0)

    def place(self, name: str) -> int | None:
        """l of the input ``name`` in what ``estimate`` gives; None before it was observed."""
        place = self._places.get(name)
        return place if place is not None and place < len(self._sums) else None

    def estimate(
        self,
        b: int,
        t: int,
        sample_ids: Tensor | None,
        device: torch.device,
        source: str | None = None,
    ) -> Tensor | None:
        """(l, b, t) estimates of ||dY_n|| for all inputs, float32; None where nothing is known.

        ``source`` asks for another source than the configured one, to compare them.
        """
        source = source or self.source
        if source == "none" or not len(self._sums):
            return None
        self._fit(len(self._sums), t, device)
        total = self._counts.sum(1, keepdim=True)  # (l, 1)
        overall = self._sums.sum(1, keepdim=True) / total.clamp(min=1)
        overall = torch.where(total > 0, overall, 1.0)
        counts = self._counts[:, :t]
        mean = torch.where(counts > 0, self._sums[:, :t] / counts.clamp(min=1e-30), overall)
        if source == "sample":
            mean = mean.mean(1, keepdim=True)
        mean = mean.sqrt().float()[:, None].expand(-1, b, t)  # (l, b, t)
        if source != "position" and sample_ids is not None and self._table is not None:
            seen = self._grown_table()[:, sample_ids, :t]  # (l, b, t)
            if device.type == "cuda":
                seen = seen.pin_memory()
            seen = seen.to(device, non_blocking=True)
            own = _defended(seen, mean) if source == "defensive" else seen
            mean = torch.where(seen >= 0, own, mean)
        return mean

    def observe(
        self, names: Sequence[str], norms: Tensor, sample_ids: Tensor | None, mask: Tensor | None
    ) -> None:
        """Take ||dY_n|| of a batch from the backward pass, non-finite ones (a skipped step) not.

        Args:
            names: the inputs, l of them, each given to ``expect`` before.
            norms: (l, b, t).
            sample_ids: (b,) int64 on the host.
            mask: (b, t), 1 for tokens that count.
        """
        if self.source == "none":
            return
        places = [self._places[name] for name in names]
        t, device = norms.shape[2], norms.device
        self._fit(max([*places, len(self._sums) - 1]) + 1, t, device)
        counted = torch.isfinite(norms).double()
        if mask is not None:
            counted = counted * mask.to(device)
        squares = torch.where(counted > 0, norms, 0.0).double().square().sum(1)  # (l, t)
        seen = counted.sum(1)
        decay = torch.where(seen > 0, PAST, 1.0)  # positions that no sample reaches keep theirs
        everywhere = places == [*range(len(self._sums))]
        at: Any = slice(None) if everywhere else self._index(tuple(places), device)
        self._sums[at, :t] = decay * self._sums[at, :t] + squares
        self._counts[at, :t] = decay * self._counts[at, :t] + seen
        if self.table_shape is not None and sample_ids is not None:
            # Padding is stored as zero: it is masked whenever the sample comes again.
            kept = torch.where(torch.isfinite(norms), norms, UNSEEN).bfloat16().cpu()
            table = self._grown_table()
            table[torch.tensor(places)[:, None], sample_ids, :t] = kept
            if are_several():  # gather empties it
                self._own.append(sample_ids.cpu())

    def _index(self, places: tuple[int, ...], device: torch.device) -> Tensor:
        if (places, device) not in self._indices:  # a copy to the device waits for it
            self._indices[places, device] = torch.tensor(places, device=device)
        return self._indices[places, device]

    def _fit(self, inputs: int, t: int, device: torch.device) -> None:
        inputs, t = max(inputs, len(self._sums)), max(t, self._sums.shape[1])
        missing = 0, t - self._sums.shape[1], 0, inputs - len(self._sums)
        self._sums = F.pad(self._sums.to(device), missing)
        self._counts = F.pad(self._counts.to(device), missing)

    def _grown_table(self) -> Tensor:
        assert self.table_shape is not None
        there = 0 if self._table is None else len(self._table)
        if there < len(self._sums):
            more = torch.full(
                (len(self._sums) - there, *self.table_shape), UNSEEN, dtype=torch.bfloat16
            )
            self._table = more if self._table is None else torch.cat([self._table, more])
        assert self._table is not None
        return self._table

    @property
    def host_bytes(self) -> int:
        """Bytes of the per-sample table."""
        return 0 if self._table is None else self._table.nbytes

    def state_dict(self) -> dict[str, Any]:
        return {
            "names": self.names,
            "sums": self._sums.clone().cpu(),
            "counts": self._counts.clone().cpu(),
            "table": None if self._table is None else self._table.clone(),
            "own": [ids.clone() for ids in self._own],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        table = state["table"]
        if table is not None and tuple(table.shape[1:]) != self.table_shape:
            raise ValueError(
                f"the saved gradient norms have shape {tuple(table.shape[1:])}, this sampler's "
                f"table {self.table_shape}; give the same num_samples and max_tokens"
            )
        self._places = {name: place for place, name in enumerate(state["names"])}
        self._sums, self._counts = state["sums"].clone(), state["counts"].clone()
        self._table = None if table is None else table.clone()
        self._own = [ids.clone() for ids in state["own"]]


def _defended(seen: Tensor, mean: Tensor) -> Tensor:
    """Norms (l, b, t) of an epoch ago, guarded against what has changed since: tokens keep their
    shares in their sample, whose size goes part of the way to that of its positions, ``mean``; a
    defensive mixture with these (Hesterberg 1995, Technometrics 37:185) bounds a row's cost."""
    own = seen.clamp(min=0)
    size = own.square().sum(2, keepdim=True)  # (l, b, 1)
    usual = (mean.square() * (seen > 0)).sum(2, keepdim=True)
    change = 1 - RENEWED + RENEWED * usual / size.clamp(min=torch.finfo(size.dtype).tiny)
    return torch.lerp(own * change.sqrt(), mean, DEFENCE)
