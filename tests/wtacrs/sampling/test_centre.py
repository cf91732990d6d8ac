"""The split of an input into what is kept exactly and the rest: classes, means, directions."""

import pytest
import torch

from wtacrs.randomness import Randomness
from wtacrs.sampling.batch import Rows
from wtacrs.sampling.centre import Centring, features, row_classes

kinds = pytest.mark.parametrize("kind", ["classes", "lowrank"])


def centring(kind, rank=1):
    return Centring(kind, rank, Randomness(0, "directions"))


def split(kind, x, rank=1, steps=1, dtype=torch.float32, squares=None, name="fc"):
    """The split of the last of ``steps`` steps over the same rows."""
    centre, classes = centring(kind, rank), row_classes(Rows(len(x), 1), torch.ones(len(x)))
    squares = torch.ones(len(x), 1) if squares is None else squares
    for _ in range(steps):
        found = centre.split(name, x, classes, squares, dtype)
    return found


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([[1, 1, 1, 1]], [[0, 2, 2, 1]]),
        ([[1, 1, 1, 0]], [[0, 2, 1, -1]]),  # padding has no class
        ([[0, 1, 1, 1]], [[-1, 0, 2, 1]]),  # on the left
        ([[1, 0, 0, 0]], [[0, -1, -1, -1]]),  # a single row is the first
        ([[0, 0, 0, 0]], [[-1, -1, -1, -1]]),
        ([[1, 1, 0, 0], [0, 0, 1, 1]], [[0, 1, -1, -1], [-1, -1, 0, 1]]),
    ],
)
def test_classes_of_rows(mask, expected):
    """0 first, 1 last, 2 the others of a sample's rows that count."""
    valid = torch.tensor(mask).float()
    classes = row_classes(Rows(*valid.shape, mask=valid), valid.reshape(-1))
    found = torch.where(classes.sum(1) > 0, classes.argmax(1), -1)
    assert found.tolist() == torch.tensor(expected).flatten().tolist()
    assert set(classes.unique().tolist()) <= {0.0, 1.0}


def test_one_class_where_nothing_is_known():
    assert torch.equal(row_classes(Rows(5, 1), torch.ones(5)), torch.ones(5, 1))


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_parts_add_up(kind, dtype):
    """To X, from what the backward pass gets, whatever F and G were rounded to."""
    x = torch.randn(40, 8) + 3 * torch.randn(8)
    found = split(kind, x, dtype=dtype)
    f = features(found.classes, found.coordinates, dtype)
    assert f.dtype == found.basis.dtype == dtype
    assert f.shape[1] == len(found.basis) == (1 if kind == "classes" else 2)
    torch.testing.assert_close(f.float() @ found.basis.float() + found.rest, x)


def test_the_means_are_those_of_the_weighted_rows():
    x, squares = torch.randn(40, 8), torch.rand(40, 1)
    expected = (squares * x).sum(0) / squares.sum()
    torch.testing.assert_close(split("classes", x, squares=squares).basis, expected[None])


@pytest.mark.parametrize("rank", [1, 2])
def test_directions_become_the_leading_ones(rank):
    """Of the rows less their mean, weighted: those of the decomposition after some steps."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([9.0, 5.0, 1.0, 1.0, 0.5, 0.5])
    x = torch.randn(60, 6, generator=generator) * scales + 20
    squares = torch.rand(60, 1, generator=generator)
    mean = (squares * x).sum(0) / squares.sum()
    leading = torch.linalg.svd(squares.sqrt() * (x - mean)).Vh[:rank]
    found = split("lowrank", x, rank, steps=30, squares=squares).basis[1:]
    torch.testing.assert_close(found.T @ found, leading.T @ leading, rtol=0, atol=1e-3)
    torch.testing.assert_close(found @ found.T, torch.eye(rank), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_step_without_or_with_bad_numbers_leaves_directions(rank, value):
    """No gradients at all, or an overflow: an orthonormal basis stays, the next step goes on."""
    centre, classes, x = centring("lowrank", rank), torch.ones(40, 1), torch.randn(40, 8)
    good, bad = torch.ones(40, 1), torch.full((40, 1), value)
    for squares in (good, bad, good):
        centre.split("fc", x, classes, squares, torch.float32)
    (v,) = centre.state_dict()["vectors"].values()
    torch.testing.assert_close(v.T @ v, torch.eye(rank), rtol=0, atol=1e-5)
