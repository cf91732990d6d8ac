"""Kernels that a step hands out: counted without views, and few beyond the plain layer's."""

import torch

from wtacrs.measure.launches import Launches
from wtacrs_experiments.bench.layer import bench_launches


def test_views_and_allocations_do_not_count():
    x = torch.ones(4, 4)
    with Launches() as launches:
        y = torch.empty(4, 4)
        y.copy_(x.T.reshape(-1).view(4, 4)[1:].t().expand(4, 3)[:, :1].expand(4, 4))
    assert launches.kernels == {"clone": 1, "copy_": 1} or launches.kernels["copy_"] >= 1
    assert launches.total <= 2


def test_a_layer_launches_few_more_than_the_plain_one():
    """With table, ids and mask: at most 25 each early and 21 late, one more for pps; centred, 40
    and 58; and of a step, what its layers share."""
    counts = bench_launches(["wtacrs", "pps"], 0.3, 0)
    assert len(counts) == 6
    for name, count in counts.items():
        late, centred = name.endswith("late"), "/" in name
        uncentred = (21 if late else 25) + name.startswith("pps")
        assert count["per_layer"] <= ((58 if late else 40) if centred else uncentred)
        assert count["per_step"] <= (12 if late else 100)
