"""The parts in which attention is computed again."""

import pytest
import torch

from wtacrs.attention import recomputed as attention


@pytest.mark.parametrize(
    ("device", "shape", "part"),
    [
        ("cpu", (16, 12, 128, 128), (1, 12, 128)),  # as much as stays in the cache
        ("cpu", (16, 12, 32, 32), (16, 12, 32)),
        ("cpu", (2, 12, 512, 512), (1, 1, 512)),
        ("cpu", (1, 2, 4096, 4096), (1, 1, 64)),
        ("cuda", (16, 12, 128, 128), (5, 12, 128)),  # few kernels
        ("cuda", (200, 12, 128, 128), (10, 12, 128)),
        ("cuda", (1, 12, 512, 512), (1, 4, 512)),
        ("cuda", (1, 1, 4096, 4096), (1, 1, 256)),
        ("cuda", (1, 1, 2, 1 << 30), (1, 1, 1)),
    ],
)
def test_parts(device, shape, part):
    """Samples, heads and queries of the first part; all of them cover the scores once, each in
    one piece."""
    parts = attention._parts(torch.Size(shape), device)
    assert tuple(one.stop for one in parts[0]) == part
    ends = [0]
    for samples, heads, queries in parts:
        _, h, t, _ = shape
        start = (samples.start * h + heads.start) * t + queries.start
        sizes = [one.stop - one.start for one in (samples, heads, queries)]
        assert start == ends[-1]
        ends.append(start + sizes[0] * sizes[1] * sizes[2])
    assert ends[-1] == shape[0] * shape[1] * shape[2]
