"""Masks of one bit an element: what goes in comes out, in ceil(n / 8) bytes."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from wtacrs.layers.bits import pack, unpack

SHAPES = [(), (0,), (1,), (7,), (8,), (9,), (64,), (3, 5), (2, 0, 4), (4, 3, 2, 5), (1001,)]


def assert_round_trip(mask):
    bits = pack(mask)
    assert (bits.dtype, bits.shape) == (torch.uint8, (-(-mask.numel() // 8),))
    assert bits.untyped_storage().nbytes() == bits.numel()
    back = unpack(bits, mask.shape)
    assert back.dtype == torch.bool
    assert torch.equal(back, mask)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("fill", ["random", "ones", "zeros"])
def test_round_trip(shape, fill):
    masks = {"random": torch.rand(shape) < 0.5, "ones": torch.ones(shape).bool()}
    assert_round_trip(masks.get(fill, torch.zeros(shape).bool()))


@pytest.mark.parametrize("n", [64, 61])
def test_every_position_alone(n):
    for row in torch.eye(n).bool():
        assert_round_trip(row)
        assert_round_trip(~row)


def test_every_byte():
    """All 256 patterns of eight bits; no pattern carries into its neighbours."""
    patterns = torch.arange(256)[:, None].bitwise_right_shift(torch.arange(8)).bitwise_and(1).bool()
    assert_round_trip(patterns)
    assert pack(patterns).unique().numel() == 256


VIEWS = {
    "transposed": lambda mask: mask.T,
    "strided": lambda mask: mask[:, ::3],
    "expanded": lambda mask: mask[:, :1].expand(-1, 16),
    "from the third": lambda mask: mask.view(-1)[3:],
    "eight, from the third": lambda mask: mask.view(-1)[3:11],
}


@pytest.mark.parametrize("view", VIEWS)
def test_views(view):
    assert_round_trip(VIEWS[view](torch.rand(24, 13) < 0.5))


def test_the_mask_is_left_as_it_was():
    mask = torch.rand(16) < 0.5
    before = mask.clone()
    assert pack(mask).data_ptr() != mask.data_ptr()
    assert torch.equal(mask, before)


def test_on_fake_tensors():
    with FakeTensorMode():
        bits = pack(torch.ones(3, 7, dtype=torch.bool))
        assert (bits.shape, unpack(bits, torch.Size((3, 7))).shape) == ((3,), (3, 7))
