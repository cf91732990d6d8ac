"""One of two processes that train tiny models together: torchrun ... -m tests.wtacrs.together.

The first says on its last line what both found in each case, as JSON.
"""

from __future__ import annotations

import copy
import json
import os
import warnings
from functools import partial

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tests.wtacrs.tiny import batch_of, tiny_bert, tiny_llama
from wtacrs import SamplingConfig, apply_, sample_linears_
from wtacrs.config import preset

MAKE = {"bert": lambda: tiny_bert(0.0), "llama": lambda: tiny_llama(0.0)}


def half(batch):
    """Rank 0 has the first two of four samples, rank 1 the others."""
    first = 2 * dist.get_rank()
    return {
        key: value[first : first + 2] if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }


def full(gradient):
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient


def gradients(model):
    return {
        name.removeprefix("module."): full(parameter.grad).clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def wrap(model, how):
    if how == "ddp":
        return DistributedDataParallel(model, find_unused_parameters=True)
    blocks = model.bert.encoder.layer if hasattr(model, "bert") else model.model.layers
    for block in blocks:
        fully_shard(block)
    return fully_shard(model)


def whole_step(model):
    """Loss and gradients of a plain model: the mean of the two halves, as the processes have it."""
    found, losses = {}, []
    batch = batch_of(model)
    for first in (0, 2):
        model.zero_grad()
        given = {key: value[first : first + 2] for key, value in batch.items()}
        loss = model(**given).loss
        loss.backward()
        losses.append(loss.item())
        for name, gradient in gradients(model).items():
            found[name] = found.get(name, 0) + gradient / 2
    return losses, found


def exact(how, kind, memory):
    """With all rows kept, or nothing applied: the largest error of a gradient, relative to its
    largest element, that of their norm, and of this process's loss, before and after a step."""
    plain, model = MAKE[kind](), MAKE[kind]()
    batch = half(batch_of(plain))
    handle = None if memory == "full" else apply_(model, preset(memory, budget=1.0))
    model = wrap(model, how)
    losses, expected = whole_step(plain)
    loss = model(**batch).loss
    loss.backward()
    found = gradients(model)
    least = 1e-3 * max(gradient.abs().max() for gradient in expected.values())
    errors = [
        ((found[name] - gradient).abs().max() / gradient.abs().max().clamp(min=least)).item()
        for name, gradient in expected.items()
    ]
    norm = full(torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf")))
    for name, parameter in plain.named_parameters():
        parameter.grad = expected.get(name)
    for one in (plain, model):
        torch.optim.SGD(one.parameters(), lr=0.1).step()
    return {
        "error": max(errors),
        "norm_error": (norm / torch.nn.utils.get_total_norm(expected.values()) - 1).abs().item(),
        "loss_error": abs(loss.item() - losses[dist.get_rank()]),
        "next_loss_error": abs(model(**batch).loss.item() - whole_step(plain)[0][dist.get_rank()]),
        "moved": abs(whole_step(plain)[0][dist.get_rank()] - loss.item()),
        "sharded": sum(isinstance(p, DTensor) for p in model.parameters()),
        "sampled": handle and len(handle.sampler.names),
    }


def unbiased(how):
    """z of the mean of many estimates along one direction, and whether the processes' draws are
    different ones."""
    make = MAKE["bert"]
    _, expected = whole_step(make())
    model = make()
    sampler = sample_linears_(model, SamplingConfig("wtacrs", budget=0.3))
    name = f"{sampler.names[0]}.weight"
    direction = torch.randn(expected[name].shape, generator=torch.Generator().manual_seed(1))
    model = wrap(model, how)
    given, found = half(batch_of(make())), []
    given.pop("attention_mask")
    whole = copy.deepcopy(given)
    plain = make()
    plain(**whole).loss.backward()
    mine = (plain.get_parameter(name).grad * direction).sum()
    dist.all_reduce(mine)
    for _ in range(400):
        model.zero_grad()
        model(**given).loss.backward()
        found.append((gradients(model)[name] * direction).sum())
    values = torch.stack(found)
    z = (values.mean() - mine / 2) / (values.std() / len(values) ** 0.5)
    states = [None, None]
    state = sampler.generator(torch.device("cpu")).get_state().tolist()
    dist.all_gather_object(states, state)
    return {"z": z.item(), "spread": values.std().item(), "other draws": states[0] != states[1]}


def history():
    """Two samples each: after ``gather`` both processes know four, and the same means."""
    model = MAKE["bert"]()
    sampler = sample_linears_(
        model, SamplingConfig(grad_norms="auto", budget=0.5), num_samples=6, max_tokens=10
    )
    ids = torch.tensor([0, 1]) + 2 * dist.get_rank()
    batch = half(batch_of(model))
    sampler.start_batch(ids, batch["attention_mask"])
    model(**batch).loss.backward()
    sampler.settle()
    before = sampler.grad_norms.state_dict()
    sampler.gather()
    after = sampler.grad_norms.state_dict()
    both = [None, None]
    dist.all_gather_object(both, (before, after))
    seen = [sorted((state["table"][0, :, 0] >= 0).nonzero()[:, 0].tolist()) for state, _ in both]
    same = all(torch.equal(both[0][1][key], both[1][1][key]) for key in ("sums", "table"))
    kept = all(
        torch.equal(after["table"][:, at], state["table"][:, at])
        for (state, _), at in zip(both, ([0, 1], [2, 3]), strict=True)
    )
    means = torch.equal(after["sums"], (both[0][0]["sums"] + both[1][0]["sums"]) / 2)
    known = sorted((after["table"][0, :, 0] >= 0).nonzero()[:, 0].tolist())
    return {"seen": seen, "known": known, "same": same, "kept": kept, "means": means}


KINDS = (("ddp", "bert"), ("fsdp", "bert"), ("fsdp", "llama"))
CASES = {
    **{
        f"exact {how} {kind} {memory}": partial(exact, how, kind, memory)
        for how, kind in KINDS
        for memory in ("full", "linear", "lean", "leanest")
    },
    **{f"unbiased {how}": partial(unbiased, how) for how in ("ddp", "fsdp")},
    "history": history,
}


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {name: case() for name, case in CASES.items()}
    every = [None, None]
    dist.all_gather_object(every, found)
    if dist.get_rank() == 0:
        print(json.dumps({name: [one[name] for one in every] for name in CASES}), flush=True)
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that tears them down


if __name__ == "__main__":
    main()
