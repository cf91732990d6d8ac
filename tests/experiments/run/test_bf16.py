"""bf16 products in float32, where oneDNN has none of bf16."""

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from wtacrs.measure.tracker import StorageTracker
from wtacrs_experiments.config.running import TrainingConfig
from wtacrs_experiments.run import bf16, runner

ROUNDING = 2**-8  # to bf16, relative: half of the last of 8 binary places


def operands(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]


class Operands(TorchDispatchMode):
    """Of what types the matrices are that are multiplied in the end."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in bf16.PRODUCTS:
            self.dtypes |= {one.dtype for one in args if isinstance(one, torch.Tensor)}
        return func(*args, **(kwargs or {}))


PRODUCTS = {
    "mm": (torch.mm, [(40, 64), (64, 24)]),
    "addmm": (torch.addmm, [(24,), (40, 64), (64, 24)]),
    "bmm": (torch.bmm, [(3, 40, 64), (3, 64, 24)]),
    "baddbmm": (torch.baddbmm, [(3, 40, 24), (3, 40, 64), (3, 64, 24)]),
    "linear": (functional.linear, [(2, 20, 64), (24, 64), (24,)]),
    "matmul": (torch.matmul, [(2, 3, 20, 64), (2, 3, 64, 24)]),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_and_its_gradients_are_float64s_rounded_once(name):
    """Within the rounding of the result and of a float32 sum, forward and backward."""
    function, shapes = PRODUCTS[name]
    given = [one.requires_grad_() for one in operands(*shapes)]
    exact = [one.detach().double().requires_grad_() for one in given]
    with Operands() as computed, bf16.Float32Products():
        product = function(*given)
        gradient = operands(product.shape, seed=1)[0]
        product.backward(gradient)
    assert computed.dtypes == {torch.float32}
    expected = function(*exact)
    expected.backward(gradient.double())
    assert product.dtype == torch.bfloat16
    torch.testing.assert_close(product.double(), expected, rtol=ROUNDING, atol=1e-5)
    for one, other in zip(given, exact, strict=True):
        assert one.grad.dtype == torch.bfloat16
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=ROUNDING, atol=1e-5)


def test_attention_goes_back_as_in_float32():
    given = [one.requires_grad_() for one in operands(*[(2, 4, 20, 16)] * 3)]
    single = [one.detach().float().requires_grad_() for one in given]
    with Operands() as computed, bf16.Float32Products():
        attended = functional.scaled_dot_product_attention(*given)
        attended.sum().backward()
    assert computed.dtypes == {torch.float32}
    functional.scaled_dot_product_attention(*single).sum().backward()
    for one, other in zip(given, single, strict=True):
        assert one.grad.dtype == torch.bfloat16
        torch.testing.assert_close(one.grad.float(), other.grad, rtol=0.02, atol=0.02)


def test_float32_and_integers_stay_as_they_are():
    left, right = (one.float() for one in operands((40, 64), (64, 24)))
    whole = torch.arange(16).reshape(4, 4)
    with bf16.Float32Products():
        assert torch.equal(left @ right, torch.mm(left, right))
        assert (left @ right).dtype == torch.float32
        assert (whole @ whole).dtype == torch.int64


def test_what_counts_memory_sees_no_float32_copies():
    left, right = operands((256, 256), (256, 256))
    with bf16.Float32Products(), StorageTracker() as tracker:
        product = left @ right
    assert tracker.peak_bytes == product.nbytes


@pytest.mark.parametrize(
    ("precision", "multiplies", "in_float32"),
    [
        ("bf16-autocast", False, True),
        ("bf16", False, True),
        ("bf16-autocast", True, False),
        ("fp32", False, False),
    ],
)
def test_only_a_run_in_bf16_on_a_cpu_without_it(
    precision, multiplies, in_float32, monkeypatch, capsys
):
    monkeypatch.setattr(bf16, "multiplies_bf16", lambda: multiplies)
    context = bf16.products(TrainingConfig(precision=precision, device="cpu"))
    assert isinstance(context, bf16.Float32Products) == in_float32
    assert ("computed in float32" in capsys.readouterr().out) == in_float32


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_of_a_run_computes_so(rank, make_config, monkeypatch):
    def carry_out(*_):
        modes.append(_get_current_dispatch_mode())

    modes = []
    monkeypatch.setattr(bf16, "multiplies_bf16", lambda: False)
    monkeypatch.setattr(runner, "carry_out", carry_out)
    monkeypatch.setattr(runner, "show", lambda *_: None)
    monkeypatch.setattr(runner.ranks, "rank", lambda: rank)
    monkeypatch.setattr(runner.ranks, "follows", lambda: True)
    runner.run(make_config("training.precision=bf16-autocast"))
    assert [type(mode) for mode in modes] == [bf16.Float32Products]
    assert _get_current_dispatch_mode() is None
