"""What CUDA's kernels would keep, on fake tensors of the CPU."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.saved import SavedBytes
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.plan.kernels import cuda_kernels


@pytest.mark.parametrize(("mask", "s"), [("none", 32), ("bool", 32), ("float", 32), ("float", 33)])
def test_cuda_attention_keeps_no_probabilities(mask, s):
    b, h, t, d = 2, 3, 40, 8
    with FakeTensorMode(), cuda_kernels():
        q, k, v = (torch.ones(b, h, n, d, requires_grad=True) for n in (t, s, s))
        bias = {"none": None, "bool": torch.ones(b, 1, t, s, dtype=torch.bool)}
        bias["float"] = torch.zeros(b, 1, t, s)
        with SavedBytes(torch.nn.Module()) as saved:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[mask], dropout_p=0.1)
    sums = b * h * 64  # t, rounded up to blocks of 32
    masks = 0 if mask == "none" else b * t * {32: 32, 33: 48}[s]  # rows aligned to 16
    expected = b * h * (2 * t + 2 * s) * d + sums + masks
    assert out.shape == (b, h, t, d)
    assert saved.bytes == pytest.approx(4 * expected, abs=16)  # seed and offset of the generator


def test_cuda_autocast_norms_and_softmax_are_in_float32():
    """As CUDA's list of operations has it, and the CPU's has not."""
    x, weight = torch.ones(2, 8, 4, 16, dtype=torch.bfloat16), torch.ones(16)
    autocast = torch.autocast("cpu", torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True), cuda_kernels(), autocast:
        kept = F.layer_norm(x, (16,), weight), F.softmax(x, -1)
        native = torch.native_layer_norm(x, (16,), weight, None, 1e-5)[0]
        attended = F.scaled_dot_product_attention(x.float(), x, x, torch.ones(2, 1, 4, 4))
    assert {one.dtype for one in (*kept, native)} == {torch.float32}
    assert attended.dtype == torch.bfloat16
    with FakeTensorMode(allow_non_fake_inputs=True), autocast:
        assert F.softmax(x, -1).dtype == torch.bfloat16


def test_cuda_attention_that_is_not_known_is_refused():
    q = torch.ones(1, 1, 4, 6)  # 6 features are none of the kernel's
    with cuda_kernels(), pytest.raises(UserError, match="attention=eager"):
        F.scaled_dot_product_attention(q, q, q)
