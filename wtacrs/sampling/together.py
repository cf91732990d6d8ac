"""Several processes, one history of gradient norms.

Each process observes its own samples. In another epoch each sees others, so what a process knows of
a sample has to reach all of them: ``gather``, which all call, say at the end of an epoch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from wtacrs.sampling.grad_norms import GradNorms


def are_several() -> bool:
    """Whether this process is one of several of a process group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather(norms: GradNorms) -> None:
    """Take over what the other processes of the default group have observed since the last call.

    Running means become those of all; a sample's row is that of the process that saw it.
    """
    if not are_several():
        return
    ids = torch.cat(norms._own).unique() if norms._own else torch.zeros(0, dtype=torch.int64)
    norms._own.clear()
    own = {
        "names": norms.names,
        "sums": norms._sums.cpu(),  # (l, t)
        "counts": norms._counts.cpu(),
        "ids": ids,
        "rows": None if norms._table is None else norms._table[:, ids],  # (l, ids, t)
    }
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, own)
    for one in every:
        for name in one["names"]:
            norms.expect(name)
    norms._fit(len(norms.names), max(one["sums"].shape[1] for one in every), norms._sums.device)
    sums, counts = torch.zeros_like(norms._sums), torch.zeros_like(norms._counts)
    for one in every:
        inputs, t = one["sums"].shape
        at = torch.tensor([norms.order(name) for name in one["names"][:inputs]], dtype=torch.int64)
        sums[at, :t] += one["sums"].to(sums.device)
        counts[at, :t] += one["counts"].to(counts.device)
        if one["rows"] is not None:
            norms._grown_table()[at[: len(one["rows"])][:, None], one["ids"]] = one["rows"]
    norms._sums, norms._counts = sums / len(every), counts / len(every)
