"""The memory of a step against sums worked by hand: sizes are elements * 4 for float32."""

import gc
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import BertConfig, BertForSequenceClassification

from wtacrs.measure.step import PeakMemory, measure_step, optimizer_tensors, tensor_bytes


def test_peak_memory_on_the_cpu():
    memory = PeakMemory(torch.device("cpu"))
    with memory:
        a = torch.zeros(100) + 1
    assert memory.method == "storage tracker"
    assert (memory.current_bytes, memory.peak_bytes, memory.reserved_bytes) == (400, 800, None)
    assert a.sum() == 100


def test_peak_memory_keeps_the_numbers_of_its_end():
    with PeakMemory(torch.device("cpu")) as memory:
        a = torch.zeros(100) + 1
    del a
    assert (memory.current_bytes, memory.peak_bytes) == (400, 800)


def test_peak_memory_on_cuda_keeps_the_numbers_of_its_end(monkeypatch):
    """Within the context the allocator is read live; after it, it goes on counting other work."""
    allocator = {"memory_allocated": 10, "max_memory_allocated": 20, "max_memory_reserved": 30}
    called = []
    for name in allocator:
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name: allocator[name])
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name: called.append(name))

    def numbers():
        return memory.current_bytes, memory.peak_bytes, memory.reserved_bytes

    with PeakMemory(torch.device("cuda")) as memory:
        assert called == ["synchronize", "reset_peak_memory_stats"]
        assert numbers() == (10, 20, 30)
        allocator.update(memory_allocated=11, max_memory_allocated=22, max_memory_reserved=33)
        assert numbers() == (11, 22, 33)
    assert called[2:] == ["synchronize"]
    allocator.update(memory_allocated=5, max_memory_allocated=99, max_memory_reserved=99)
    assert numbers() == (11, 22, 33)
    with memory:  # a second time it measures anew
        assert numbers() == (5, 99, 99)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_memory_on_cuda():
    """The allocator's own numbers, in its blocks of 512 bytes; the peak before does not count."""
    gc.collect()
    device = torch.device("cuda")
    torch.zeros(1 << 20, device=device)
    before = torch.cuda.memory_allocated(device)
    with PeakMemory(device) as memory:
        a = torch.zeros(1024, device=device)
        b = a + 1
        del a
    other = torch.zeros(1 << 20, device=device)
    assert memory.method == "cuda allocator"
    assert memory.current_bytes - before == 4096
    assert memory.peak_bytes - before == 8192
    assert memory.reserved_bytes >= memory.peak_bytes
    assert b.sum() + other.sum() == 1024


class Summed(nn.Sequential):
    """Layers whose output is summed to the loss; sum saves nothing."""

    def forward(self, x):
        return SimpleNamespace(loss=super().forward(x).sum())


def sgd_step(*layers):
    model = Summed(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return measure_step(model, optimizer, {"x": torch.ones(8, 4)})


def parts(**sizes):
    names = ("parameter", "optimizer", "gradient", "saved", "temporary", "other", "unseen")
    return dict.fromkeys(names, 0) | sizes


@pytest.mark.parametrize("mode", [nullcontext, FakeTensorMode])
def test_step_of_a_linear_layer(mode):
    """x (8, 4) 128, W (6, 4) 96, momentum 96. y 192 and the loss 4 meet: the peak, 516.

    The layer saves x, which is there anyway: when the forward pass ends only the loss is new.
    """
    with mode():
        memory = sgd_step(nn.Linear(4, 6, bias=False))
    assert memory.peak_bytes == 516
    assert memory.at_peak == parts(parameter=96, optimizer=96, other=128, saved=4, temporary=192)
    assert (memory.parameter_bytes, memory.gradient_bytes, memory.optimizer_bytes) == (96, 96, 96)
    assert (memory.saved_bytes, memory.reserved_bytes) == (4, None)
    assert memory.method == "storage tracker"


@pytest.mark.parametrize("mode", [nullcontext, FakeTensorMode])
def test_step_of_two_layers(mode):
    """x 128, W1 (6, 4) 96, W2 (2, 6) 48, momenta 144: 416 at the start.

    The forward pass leaves r 192 and the loss 4. The backward pass holds the loss's gradient 4 to
    its end; dW2 48 comes with dr 192, then dh 192 beside them while r is read. That is the peak,
    416 + 196 + 4 + 48 + 384 = 1048.
    """
    with mode():
        memory = sgd_step(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 2, bias=False))
    assert memory.saved_bytes == 196
    assert memory.gradient_bytes == 144
    assert memory.peak_bytes == 1048
    assert memory.at_peak == parts(
        parameter=144, optimizer=144, other=128, gradient=48, saved=196, temporary=388
    )


def test_step_makes_the_optimizer_state_first():
    """Two steps where there is no state, one where there is; the gradients are gone after each."""
    model, calls = Summed(nn.Linear(4, 2)), []
    optimizer = torch.optim.AdamW(model.parameters())

    def step():
        calls.append(model(torch.ones(3, 4)).loss.backward())

    for expected in (2, 3):
        memory = measure_step(model, optimizer, {}, step=step)
        assert len(calls) == expected
        assert memory.optimizer_bytes == 2 * memory.parameter_bytes + 2 * 4  # two, and steps
        assert tensor_bytes(optimizer_tensors(optimizer)) == memory.optimizer_bytes
        assert all(p.grad is None for p in model.parameters())
    assert not model._forward_hooks


def test_step_without_a_forward_pass():
    model = Summed(nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(ValueError, match="no forward pass"):
        measure_step(model, optimizer, {}, step=lambda: None)


def bert_step(device="cpu", **sizes):
    """A training step of a small BERT, one row padded, dropout on."""
    torch.manual_seed(0)
    size = {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100, **sizes}
    with torch.device(device):
        model = BertForSequenceClassification(BertConfig(**size)).train()
    assert model.config.hidden_dropout_prob == model.config.attention_probs_dropout_prob == 0.1
    mask = torch.ones(32, 16, dtype=torch.int64)
    mask[1, 12:] = 0
    batch = {"input_ids": torch.ones_like(mask), "attention_mask": mask}
    batch["labels"] = torch.zeros(32, dtype=torch.int64)
    batch = {name: value.to(device) for name, value in batch.items()}
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    return measure_step(model, optimizer, batch)


def test_a_planned_step_is_a_measured_one():
    """The same transformer on fake tensors: all numbers within 1 %."""
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    real = bert_step(**sizes)
    with FakeTensorMode():
        planned = bert_step(**sizes)
    assert sum(real.at_peak.values()) == real.peak_bytes
    assert sum(planned.at_peak.values()) == planned.peak_bytes
    for name in ("peak", "parameter", "gradient", "optimizer", "saved"):
        expected = pytest.approx(getattr(real, f"{name}_bytes"), rel=0.01)
        assert getattr(planned, f"{name}_bytes") == expected
    assert planned.at_peak == pytest.approx(real.at_peak, rel=0.01, abs=0.01 * real.peak_bytes)
    assert real.at_peak["saved"] > 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_step_on_cuda():
    """The allocator's peak, and the tracker's within 5 %; the tensors dwarf its blocks."""
    memory = bert_step("cuda", hidden_size=256, intermediate_size=1024)
    assert memory.method == "cuda allocator"
    assert memory.reserved_bytes >= memory.peak_bytes == sum(memory.at_peak.values())
    assert abs(memory.at_peak["unseen"]) < 0.05 * memory.peak_bytes


def test_a_batch_whose_gradients_are_added_to_those_of_another():
    """One linear layer, 20 x 10 weights: the gradient before is there all along, the one that is
    added is temporary, and the forward pass saves what it does alone."""
    model, x = nn.Linear(20, 10, bias=False), torch.ones(3, 20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step():
        model(x).sum().backward()

    alone = measure_step(model, optimizer, {"x": x}, step=step)
    added = measure_step(model, optimizer, {"x": x}, step=step, accumulates=True)
    assert added.at_peak["gradient"] == added.gradient_bytes == 200 * 4
    assert added.saved_bytes == alone.saved_bytes
    assert added.peak_bytes == alone.peak_bytes + 200 * 4
    assert sum(added.at_peak.values()) == added.peak_bytes
    assert model.weight.grad is None
