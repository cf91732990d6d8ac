"""The linear layers of many experts: exact outputs and input gradients, unbiased weight gradients.

The oracle is a loop over the experts by torch's own products.
"""

import math

import pytest
import torch

from wtacrs import SamplingConfig
from wtacrs.sampling.draws import Kept
from wtacrs.sampling.groups import (
    GroupedLinearFunction,
    Groups,
    KeptRows,
    Referred,
    by_expert,
    grouped_product,
    keep_rows,
    within_groups,
)
from wtacrs.sampling.sampler import Sampler

S, E, IN, OUT, BUDGET = 40, 5, 8, 12, 0.3
K = round(BUDGET * S)
EMPTY = 2  # the expert that nothing is sent to


def rows(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    chosen = torch.tensor([0] * 3 + [1] * 17 + [3] * 12 + [4] * 8)
    chosen = chosen[torch.randperm(S, generator=generator)]
    x, dy = torch.randn(S, IN, generator=generator), torch.randn(S, OUT, generator=generator)
    size = torch.rand(S, 1, generator=generator) * 2 + 0.1
    w = torch.randn(E, OUT, IN, generator=generator)
    groups, order = by_expert(chosen, E)
    return groups, order, (x * size).to(dtype), w.to(dtype), (dy * size.flip(0)).to(dtype)


def picker(estimator="wtacrs", budget=BUDGET, dtype=torch.float32):
    sampler = Sampler(SamplingConfig(estimator, budget=budget, center="none"), ["layer"], {})
    return sampler.late_pick("layer", torch.device("cpu"), 1, dtype)


def exact(groups, x, w, dy):
    """(Y, dX, dW) by a loop over the experts."""
    y, dx, dw = torch.zeros_like(dy), torch.zeros_like(x), torch.zeros_like(w)
    for e in range(E):
        at = groups.of == e
        y[at], dx[at], dw[e] = x[at] @ w[e].T, dy[at] @ w[e], dy[at].T @ x[at]
    return y, dx, dw


def ours(groups, x, w, dy, memory, transposed=False):
    """The same by the Function."""
    x, w = x.clone().requires_grad_(), (w.mT.contiguous() if transposed else w.clone())
    w.requires_grad_()
    y = GroupedLinearFunction.apply(x, w, transposed, groups, memory)
    y.backward(dy)
    return y.detach(), x.grad, w.grad.mT if transposed else w.grad


def memories(groups, x, dy, pick):
    """Rows picked early by half of what is known, and late."""
    guess = torch.linalg.vector_norm(dy, dim=1).sqrt()
    return {
        "early": lambda: keep_rows(x, guess, groups, pick, 0.01),
        "late": lambda: Referred(x, None, pick),
    }


def test_rows_are_sorted_by_expert():
    groups, order, *_ = rows()
    assert groups.of.diff().min() == 0
    assert groups.ends.tolist() == [3, 20, 20, 32, 40]
    assert sorted(order.tolist()) == [*range(S)]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # by torch's kernel, by a loop
@pytest.mark.parametrize("when", ["early", "late", "all"])
def test_outputs_and_input_gradients_are_exact(when, dtype, transposed):
    groups, _, x, w, dy = rows(dtype)
    expected = exact(groups, x, w, dy)
    made = memories(groups, x, dy, picker(dtype=dtype)) | {"all": lambda: Referred(x, None, None)}
    found = ours(groups, x, w, dy, made[when](), transposed)
    for one, other in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(one, other)
    if when == "all":
        torch.testing.assert_close(found[2], expected[2])
    assert found[2][EMPTY].abs().max() == 0


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("when", ["early", "late"])
@pytest.mark.parametrize("estimator", ["uniform", "crs", "wtacrs", "pps"])
def test_the_gradient_of_each_expert_is_unbiased(estimator, when, transposed):
    """z of the mean of 300 estimates along one random direction of each expert; false alarms:
    |z| > 4.5, 7 in a million each."""
    groups, _, x, w, dy = rows()
    expected = exact(groups, x, w, dy)[2]
    make = memories(groups, x, dy, picker(estimator))[when]
    ways = torch.randn(E, OUT, IN, generator=torch.Generator().manual_seed(5))
    found = torch.stack(
        [(ours(groups, x, w, dy, make(), transposed)[2] * ways).sum((1, 2)) for _ in range(300)]
    ).double()
    aim = (expected * ways).sum((1, 2))
    for e in {*range(E)} - {EMPTY}:
        assert found[:, e].std() > 0
        z = (found[:, e].mean() - aim[e]) / (found[:, e].std() / math.sqrt(len(found)))
        assert abs(z) < 4.5, e


def test_late_rows_are_those_of_the_tokens():
    """An input that is referred to by its tokens is that input."""
    groups, order, _, w, dy = rows()
    tokens = torch.randn(S // 2, IN, generator=torch.Generator().manual_seed(7))
    token = order // 2
    x = tokens[token]
    by_rows = ours(groups, x, w, dy, Referred(x, None, picker()))
    by_tokens = ours(groups, x, w, dy, Referred(tokens, token, picker()))
    assert all(map(torch.equal, by_rows, by_tokens))


def test_weights_within_experts_sum_to_their_rows():
    groups, *_ = rows()
    weights = torch.rand(S, generator=torch.Generator().manual_seed(1)) + 0.1
    weights = weights * 10.0 ** (8 * groups.of - 16)  # experts of quite different gradients
    weights[0] = 0
    made = within_groups(weights, groups)
    sums = [made[groups.of == e].sum().item() for e in range(E)]
    assert sums == pytest.approx([2, 17, 0, 12, 8])
    of_one = groups.of == 1
    torch.testing.assert_close(
        made[of_one] / made[of_one].sum(), weights[of_one] / weights[of_one].sum()
    )


def test_each_expert_keeps_its_share_on_average():
    """However small its gradients are. crs draws rows by their probability: the numbers of an
    expert have the mean k n_e / s and the binomial's deviation; within 4.5 of it."""
    groups, _, x, _, dy = rows()
    dy = dy * 10.0 ** (-3.0 * groups.of[:, None])
    pick, m = picker("crs"), 400
    kept = torch.zeros(E, dtype=torch.float64)
    for _ in range(m):
        one = keep_rows(x, torch.linalg.vector_norm(dy, dim=1), groups, pick, 0.0)
        kept += torch.bincount(groups.of[one.kept.indices], minlength=E)
    share = torch.bincount(groups.of, minlength=E) / S
    deviation = (m * K * share * (1 - share)).sqrt().clamp(min=1e-9)
    assert (((kept - m * K * share) / deviation).abs() < 4.5).all()


def saved_by(x, w, groups, memory):
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        GroupedLinearFunction.apply(x.clone().requires_grad_(), w, False, groups, memory)
    return kept


@pytest.mark.parametrize("when", ["early", "late"])
def test_early_keeps_k_rows_and_late_refers(when):
    groups, _, x, w, dy = rows()
    kept = saved_by(x, w.requires_grad_(), groups, memories(groups, x, dy, picker())[when]())
    (inputs,) = (one for one in kept if one.shape[-1:] == (IN,) and one.dim() == 2)
    assert len(inputs) == (K if when == "early" else S)
    assert (inputs.data_ptr() == x.data_ptr()) == (when == "late")


def test_a_frozen_weight_keeps_no_row():
    groups, _, x, w, _ = rows()
    kept = saved_by(x, w, groups, Referred(x, None, None))
    assert {one.shape for one in kept} == {w.shape, groups.of.shape, groups.ends.shape}


@pytest.mark.parametrize("when", ["early", "late"])
@pytest.mark.parametrize("row", range(0, S, 7))
def test_what_is_not_finite_is_not_hidden(when, row):
    groups, _, x, w, dy = rows()
    memory = memories(groups, x, dy, picker())[when]()
    dy = dy.clone()
    dy[row, 3] = torch.nan
    assert ours(groups, x, w, dy, memory)[2].isnan().any()


@pytest.mark.parametrize("when", ["early", "late"])
def test_an_expert_whose_rows_have_no_gradient(when):
    """As one that gets the padding of the last layer alone: 0 for it, numbers for the others."""
    groups, _, x, w, dy = rows()
    dy = dy * (groups.of != 1)[:, None]
    dw = ours(groups, x, w, dy, memories(groups, x, dy, picker())[when]())[2]
    assert dw.isfinite().all()
    assert dw[1].abs().max() == 0 < dw[3].abs().max()


def test_all_rows_where_the_budget_has_them():
    groups, _, x, w, dy = rows()
    pick = picker(budget=1.0)
    assert keep_rows(x, torch.ones(S), groups, pick, 0.01) is None
    found = ours(groups, x, w, dy, Referred(x, None, pick))[2]
    torch.testing.assert_close(found, exact(groups, x, w, dy)[2])


def test_float16_scales_do_not_overflow():
    """A scale beyond 65504, times a tiny row: the product is of usual size."""
    groups = Groups(torch.zeros(4, dtype=torch.int64), torch.tensor([4], dtype=torch.int32))
    x, dy = torch.full((4, 8), 1e-3).half(), torch.full((4, 8), 1e-3).half()
    kept = Kept(torch.tensor([1]), torch.tensor([1e5]), None, None)
    memory = KeptRows(x[1:2], kept, torch.tensor([1], dtype=torch.int32))
    dw = ours(groups, x, torch.ones(1, 8, 8).half(), dy, memory)[2]
    torch.testing.assert_close(dw, torch.full((1, 8, 8), 0.1).half(), rtol=0.02, atol=0)


def test_the_product_of_an_expert_without_rows():
    ends = torch.tensor([0, 0, 4], dtype=torch.int32)
    for dtype in (torch.float32, torch.float64):
        a, b = torch.ones(8, 4, dtype=dtype), torch.ones(4, 8, dtype=dtype)
        sums = grouped_product(a, b, ends)
        assert sums.amax((1, 2)).tolist() == [0, 0, 4]
