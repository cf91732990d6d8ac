"""Bytes against sums worked by hand: every size below is elements * 4 for float32."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.saved import SavedBytes
from wtacrs.measure.tracker import StorageTracker, tensor_bytes


def test_bytes_alive_and_peak():
    with StorageTracker() as tracker:
        a = torch.zeros(100)
        b = a + 1
        assert (tracker.current_bytes, tracker.peak_bytes) == (800, 800)
        del a
        assert (tracker.current_bytes, tracker.peak_bytes) == (400, 800)
        c = torch.cat([b, b])
        assert (tracker.current_bytes, tracker.peak_bytes) == (1200, 1200)
        del b, c
    assert (tracker.current_bytes, tracker.peak_bytes) == (0, 1200)


def test_views_share_a_storage():
    with StorageTracker() as tracker:
        a = torch.zeros(10, 10)
        views = [a.T, a[2:], a.reshape(-1), a.detach(), a.chunk(2)]
        assert tracker.current_bytes == 400
        del a
        assert tracker.current_bytes == 400  # any view keeps all of it
        del views
        assert tracker.current_bytes == 0


def test_what_exists_already_counts_where_it_is_named():
    a = torch.zeros(100)
    with StorageTracker([a, a[:3]]) as tracker:
        assert tracker.current_bytes == tracker.peak_bytes == 400
        a.add_(1)
        assert tracker.current_bytes == 400
        del a
        assert tracker.current_bytes == 0


def test_what_existed_already_is_not_made_by_a_view():
    """A storage that no operation in the context has allocated does not count."""
    a = torch.zeros(100)
    with StorageTracker() as tracker:
        view = a.view(10, 10)
        assert tracker.current_bytes == 0
    assert view.shape == (10, 10)


def test_resize():
    with StorageTracker() as tracker:
        a = torch.zeros(100)
        a.resize_(50, 4)
        assert tracker.current_bytes == 800
        a.untyped_storage().resize_(0)
        torch.zeros_like(a[:0])
        assert tracker.current_bytes == 0
        assert sum(tracker.at_peak().values()) == tracker.peak_bytes == 800


def test_what_is_alive_at_the_peak():
    """What went since then and what came since then are told apart."""
    first = torch.zeros(10)
    with StorageTracker([first]) as tracker:
        a = torch.zeros(100)
        b = torch.zeros(50)
        named = [tracker.numbers([x]) for x in (first, a, b)]
        assert tracker.alive() == set.union(*named)
        del b
        c = torch.zeros(20)
        assert sum(tracker.at_peak().values()) == tracker.peak_bytes == 640
        assert tracker.at_peak().keys() == set.union(*named)
        assert tracker.alive() == named[0] | named[1] | tracker.numbers([c])
        del a, c
        assert tracker.at_peak().keys() == set.union(*named)
        d = torch.zeros(1000)
        assert tracker.at_peak().keys() == named[0] | tracker.numbers([d])
        assert sum(tracker.at_peak().values()) == tracker.peak_bytes == 4040


def test_one_type_of_device_counts():
    with StorageTracker(device=torch.device("cpu")) as tracker:
        elsewhere, here = torch.zeros(100, device="meta"), torch.zeros(10)
        assert tracker.numbers([elsewhere]) == set()
        assert tracker.current_bytes == here.nbytes == 40


def mlp_step(device, fake=False):
    """A step of x (8, 4) -> (8, 6) -> relu -> (8, 2) under the tracker; (after forward, peak, end).

    Alive from the start: x 128, W1 96, W2 48, dy 64: 336.
    Forward: h 192 and r 192 at once, then h goes and y 64 comes: 592 after the forward pass.
    Backward: dW2 48 and dr 192, then dh 192 beside them: 1024, the peak. r is held here, in the
    frame. Then dr goes, dW1 96 comes, dh goes: the end is 336 + 192 + 64 + 48 + 96 = 736.
    """
    x, dy = torch.randn(8, 4, device=device), torch.ones(8, 2, device=device)
    w1, w2 = (nn.Parameter(torch.randn(size, device=device)) for size in [(6, 4), (2, 6)])
    with StorageTracker([x, dy, w1, w2]) as memory:
        start = memory.current_bytes
        r = F.relu(F.linear(x, w1))
        y = F.linear(r, w2)
        forward = memory.current_bytes - start
        y.backward(dy)
    return start, forward, memory.peak_bytes, memory.current_bytes


@pytest.mark.parametrize("fake", [False, True])
def test_a_training_step(fake):
    """The same on fake tensors: a plan is a measurement."""
    if fake:
        with FakeTensorMode():
            numbers = mlp_step("cpu")
    else:
        numbers = mlp_step("cpu")
    assert numbers == (336, 256, 1024, 736)


def test_saved_bytes_of_a_plain_layer():
    """Its input, once; not its parameters; a view of the input is the same storage."""
    model = nn.Linear(4, 3)
    x = torch.randn(5, 4)
    with SavedBytes(model) as saved:
        model(x), model(x[:2])
    assert saved.bytes == 80
    assert saved.tensors == [((5, 4), torch.float32)]


def test_saved_bytes_count_what_is_gone():
    """Storages of freed graphs stay counted: a new tensor at their address is a new storage."""
    model = nn.Linear(4, 3)
    with SavedBytes(model) as saved:
        for _ in range(5):
            model(torch.randn(5, 4))
    assert saved.bytes == 5 * 80


def test_tensor_bytes():
    a = torch.zeros(10, 10)
    assert tensor_bytes([a, a.T, a[0], torch.zeros(3, dtype=torch.bfloat16)]) == 406
    assert tensor_bytes([]) == 0
