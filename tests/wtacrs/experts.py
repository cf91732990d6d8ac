"""Models with experts, sampled, and a step of them."""

from wtacrs import apply_

MIXTURES = ("mixtral", "qwen2_moe", "gpt_oss", "deepseek_v3")
BUDGET = 0.3


def step(model, given):
    """(loss, gradients by name) of a forward and backward pass."""
    model.zero_grad()
    loss = model(**given).loss
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def sampled(model, memory="linear", **sampling):
    """The handle of ``model`` with sampled experts, by default with another layer beside."""
    include = sampling.pop("include", ["*.experts.*", "*.o_proj"])
    return apply_(model, memory, budget=BUDGET, include=include, **sampling)


def experts_of(model):
    return [module for module in model.modules() if hasattr(module, "gate_up_proj")]
