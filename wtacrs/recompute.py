"""Recomputation: parts of a model whose activations are computed again in the backward pass.

"block" is gradient checkpointing: of each transformer block only the input is kept. "attention"
recomputes the attention sublayer alone (norm, q, k, v, scores, o), which holds most of a block's
activations and a third of its linear products. The first forward pass runs without autograd, so
nothing is kept and no row is drawn there; the second one, in the backward pass, samples as ever.
Dropout is replayed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_flatten, tree_unflatten

RECOMPUTE = ("none", "attention", "block")


class _Replay:
    """The states of torch's generators, to draw the same dropout again."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        self._enabled = torch.is_autocast_enabled(device.type)
        self._dtype = torch.get_autocast_dtype(device.type)

    def autocast(self) -> torch.autocast:
        """Autocast as it was. Without its cache, where a weight that is cast without autograd would
        be found by a later layer that shares it, and get no gradient."""
        return torch.autocast(self.device.type, self._dtype, self._enabled, cache_enabled=False)

    def __call__(self, work: Callable[[], Any]) -> Any:
        cuda = [] if self._cuda is None else [self.device]
        with torch.random.fork_rng(cuda), torch.enable_grad(), self.autocast():
            torch.set_rng_state(self._cpu)
            if self._cuda is not None:
                torch.cuda.set_rng_state(self._cuda, self.device)
            return work()


class RecomputeFunction(torch.autograd.Function):
    """Runs ``work(*tensors)`` -> tuple without autograd, and again with it in the backward pass.

    ``tensors`` are the inputs that may need a gradient, ``parameters`` those that ``work`` reads.
    """

    @staticmethod
    def forward(
        ctx: Any, work: Callable[..., tuple[Any, ...]], count: int, *tensors: Tensor
    ) -> tuple[Any, ...]:
        inputs = tensors[:count]
        ctx.work, ctx.count = work, count
        ctx.replay = _Replay(inputs[0].device)
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        with ctx.replay.autocast():
            return work(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs, parameters = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        inputs = tuple(x.detach().requires_grad_(x.requires_grad) for x in inputs)
        outputs = ctx.replay(lambda: ctx.work(*inputs))
        pairs = [
            (get_gradient_edge(output), gradient)
            for output, gradient in zip(outputs, gradients, strict=True)
            if gradient is not None and isinstance(output, Tensor) and output.requires_grad
        ]
        del outputs  # only their graph is needed
        sources = (*inputs, *parameters)
        wanted = [x for x in sources if x.requires_grad]
        found = iter(
            torch.autograd.grad(
                [edge for edge, _ in pairs],
                wanted,
                [gradient for _, gradient in pairs],
                allow_unused=True,
            )
        )
        return None, None, *(next(found) if x.requires_grad else None for x in sources)


class Recomputed:
    """Mixed into the class of a module whose forward pass is recomputed."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        plain = super().forward  # type: ignore[misc]
        if not torch.is_grad_enabled():
            return plain(*args, **kwargs)
        _refuse_checkpointing(self)  # type: ignore[arg-type]
        leaves, structure = tree_flatten((args, kwargs))
        # A cache would take keys and values twice; one that is empty is not read in training.
        for i, leaf in enumerate(leaves):
            if hasattr(leaf, "get_seq_length"):
                if leaf.get_seq_length() > 0:
                    raise ValueError("a module that is recomputed cannot read a cache with content")
                leaves[i] = None
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        inputs = [leaves[i] for i in places]
        parameters = [p for p in self.parameters() if p.requires_grad]  # type: ignore[attr-defined]
        # What ``work`` holds lives as long as the graph; tensors must go when they are used.
        others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        result: Any = None

        def work(*tensors: Tensor) -> tuple[Any, ...]:
            nonlocal result
            given = [*others]
            for i, tensor in zip(places, tensors, strict=True):
                given[i] = tensor
            arguments, named = tree_unflatten(given, structure)
            out, result = tree_flatten(plain(*arguments, **named))
            return tuple(out)

        out = RecomputeFunction.apply(work, len(inputs), *inputs, *parameters)
        return tree_unflatten(list(out), result)


def recompute_(model: nn.Module, what: str) -> list[str]:
    """Have parts of ``model`` recomputed in the backward pass, in place.

    Args:
        model: a model with transformer blocks (members of an ``nn.ModuleList``).
        what: "attention", the outermost modules in a block whose class is named ...Attention, or
            "block", the blocks; "none" changes nothing.

    Returns:
        The qualified names of the modules that are recomputed.

    Raises:
        ValueError: ``what`` is unknown, nothing matches, or the model checkpoints or recomputes
            already.
    """
    if what not in RECOMPUTE:
        raise ValueError(f"recompute={what!r} is unknown; choose {', '.join(RECOMPUTE)}")
    if what == "none":
        return []
    _refuse_checkpointing(model)
    chosen: dict[str, nn.Module] = {}
    for name, module in _in_blocks(model):
        wanted = "Attention" in type(module).__name__ if what == "attention" else True
        if wanted and not any(name.startswith(f"{outer}.") for outer in chosen):
            chosen[name] = module
    if not chosen:
        classes = ", ".join(sorted({type(m).__name__ for _, m in _in_blocks(model)})) or "none"
        looked_for = "named ...Attention inside a block" if what == "attention" else "in a block"
        raise ValueError(
            f"this {type(model).__name__} has no module {looked_for} (a member of an "
            f"nn.ModuleList); classes inside blocks: {classes}"
        )
    if any(isinstance(module, Recomputed) for module in model.modules()):
        raise ValueError("the model is recomputed already; call restore_forward_(model) first")
    for module in chosen.values():
        plain = type(module)
        module.__class__ = type(f"Recomputed{plain.__name__}", (Recomputed, plain), {})
    return [*chosen]


def _refuse_checkpointing(model: nn.Module) -> None:
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise ValueError(
            "the model has gradient checkpointing enabled already; leave recompute at none, or "
            "disable it (Trainer: gradient_checkpointing=False)"
        )


def restore_forward_(model: nn.Module) -> None:
    """Undo ``recompute_``, in place."""
    for module in model.modules():
        if isinstance(module, Recomputed):
            module.__class__ = type(module).__bases__[1]


def _in_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, module) of the members of each ``nn.ModuleList`` and of all that is inside them."""
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    prefixes = tuple(f"{name}." if name else "" for name in lists)
    return [
        (name, module)
        for name, module in model.named_modules()
        if name.startswith(prefixes) and not isinstance(module, nn.ModuleList)
    ]
