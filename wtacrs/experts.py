"""Experts of mixtures (Mixtral, Qwen-MoE, DeepSeek, GPT-OSS) whose two products are sampled.

transformers keeps the weights of all experts of a layer in 3-D parameters, in a module of which the
decorator ``use_experts_implementation`` tells the layout, so that functions of its ExpertsInterface
can stand for its forward. Ours does so as the ``forward`` of the one module and not by a name of
the interface: which layers are sampled differs by module, and ``generate`` changes the experts'
implementation by its name to decode. Outside of training the interface's choice is what runs.

A token goes to several experts. The first product refers to the tokens, where these are there in
the backward pass anyway or are fewer than the rows that it would keep; its rows are then picked
late. Else both are picked early, by ||X_n|| and the router's weight of the row, which is a factor
of dY_n: no history is kept of rows that change their expert from step to step.

With the router's weight a, for a ((act(g) * u) W^T) is computed (a act(g) * u) W^T, if no norm
comes between and the gate neither learns nor draws. Then of the second product's output no gradient
needs the value, and beside sampled rows g, u and a alone are kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn.modules.dropout import _DropoutNd

from wtacrs.layers.expert_gate import GateFunction
from wtacrs.sampling.groups import (
    GroupedLinearFunction,
    Groups,
    KeptRows,
    Referred,
    by_expert,
    keep_rows,
)
from wtacrs.sampling.sampler import Sampler
from wtacrs.sampling.select import rows_kept
from wtacrs.swap import OwnForward, in_blocks, why_not_chosen

# What ``use_experts_implementation`` says of a module.
LAYOUT = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "_is_expert_parallel")
DRAWING = _DropoutNd, nn.RReLU  # what may be in a gate
GATE_STAYS = "its gate learns, draws or cannot be tried, so that it is not computed again"


class SampledExperts(OwnForward):
    """The ``forward`` of a module of experts that samples their inputs while it trains.

    In eval mode, without grad, in a compiled graph, where experts are on several devices, and where
    all rows would be kept, it is the plain one. Unless the gate learns or draws, it is computed
    again in the backward pass, some rows at a time: forward hooks of its ``act_fn`` run again, too.

    Args:
        module: the experts.
        sampler: of the model.
        names: of the parameters that are sampled, own name -> qualified name.
    """

    def __init__(self, module: nn.Module, sampler: Sampler, names: dict[str, str]) -> None:
        super().__init__(module)
        self.sampler, self.names = sampler, names
        self._draws = _gate_draws(module)
        self.without_product = False  # as in ``SampledLinear``, of the second product

    def __call__(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        module: Any = self.module
        if not self._samples(module, top_k_index.numel()):
            given = hidden_states, top_k_index, top_k_weights
            return type(module).forward(module, *given)
        tokens, k = top_k_index.shape
        first, second = projections(module)
        groups, order = by_expert(top_k_index.reshape(-1), len(getattr(module, second)))
        token, share = order // k, top_k_weights.reshape(-1)[order]  # (s,)
        y = self._product(first, hidden_states, token, groups, share)
        y = y.add_(getattr(module, f"{first}_bias")[groups.of]) if module.has_bias else y
        before = self.weighs_before
        y = self._gated(y, share if before else None)
        y = self._product(second, y, None, groups, None if before else share)
        if not before:
            y = y.add_(getattr(module, f"{second}_bias")[groups.of]) if module.has_bias else y
            y = module.post_expert_norm(y) if module.has_post_expert_norm else y
            y = y * share[:, None]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        y = y[back].view(tokens, k, -1).sum(1)  # (n, o)
        if before and module.has_bias:
            bias = getattr(module, f"{second}_bias")  # (e, o)
            shares = top_k_weights.new_zeros(tokens, len(bias))
            y = y + shares.scatter_add(1, top_k_index, top_k_weights).to(bias.dtype) @ bias
        return y.to(hidden_states.dtype)

    @property
    def weighs_before(self) -> bool:
        """Whether the router's weights come before the second product, of which no gradient then
        needs the value."""
        module: Any = self.module
        return not module.has_post_expert_norm and self.repeats

    @property
    def repeats(self) -> bool:
        """Whether the gate can be computed again by itself: it learns nothing and draws nothing."""
        module: Any = self.module
        products = {own for name in projections(module) for own in (name, f"{name}_bias")}
        inside = [m for name, m in module.named_children() if name != "post_expert_norm"]
        own = [p for name, p in module.named_parameters(recurse=False) if name not in products]
        own += [p for child in inside for p in child.parameters()]
        draws = any(isinstance(m, DRAWING) for child in inside for m in child.modules())
        return not (self._draws or draws) and not any(p.requires_grad for p in own)

    def _gated(self, y: Tensor, share: Tensor | None) -> Tensor:
        gate = _gate_of(self.module)
        return GateFunction.apply(y, share, gate) if self.repeats else gate(y)

    def _samples(self, module: Any, s: int) -> bool:
        if not (module.training and torch.is_grad_enabled()) or torch.compiler.is_compiling():
            return False
        trains = any(getattr(module, name).requires_grad for name in self.names)
        config = self.sampler.config
        whole = config.estimator == "full" or rows_kept(s, config.budget) >= s
        return trains and not whole and not module._is_expert_parallel

    def _product(
        self, name: str, source: Tensor, token: Tensor | None, groups: Groups, guess: Tensor | None
    ) -> Tensor:
        """The linear layers ``name`` of the rows ``token`` of ``source``."""
        module: Any = self.module
        weight, last = getattr(module, name), name == projections(module)[1]
        x = (source if token is None else source[token]).to(weight.dtype)  # (s, i)
        memory = self._memory(name, x, source, token, groups, guess)
        product = not (last and self.without_product and self.weighs_before)
        y: Tensor = GroupedLinearFunction.apply(
            x, weight, module.is_transposed, groups, memory, product
        )
        return y

    @torch.no_grad()
    def _memory(
        self,
        own: str,
        x: Tensor,
        source: Tensor,
        token: Tensor | None,
        groups: Groups,
        guess: Tensor | None,
    ) -> KeptRows | Referred:
        sampler, whole = self.sampler, Referred(source.detach(), token, None)
        if (name := self.names.get(own)) is None or not getattr(self.module, own).requires_grad:
            return whole
        k = rows_kept(len(x), sampler.config.budget)
        pick = sampler.late_pick(name, x.device, 1, x.dtype)
        # The tokens are a view of what the norm before gave.
        late = sampler.picks_late(name, source if source._base is None else source._base)
        if late or k >= len(source):
            sampler.late.add(name)
            return whole._replace(pick=pick)
        sampler.rows_seen += len(x)
        sampler.rows_kept += k
        guess = None if guess is None else guess.abs()
        kept = keep_rows(x, guess, groups, pick, sampler.config.floor)
        return whole if kept is None else kept


def projections(module: Any) -> tuple[str, str]:
    """The names of the two 3-D parameters of a module of experts."""
    return "gate_up_proj" if module.has_gate else "up_proj", "down_proj"


def _gate_of(module: Any) -> Callable[[Tensor], Tensor]:
    gate: Callable[[Tensor], Tensor] = module._apply_gate if module.has_gate else module.act_fn
    return gate


def _gate_draws(module: Any) -> bool:
    """Whether two calls of the gate in training differ, or move the generator; or it cannot be
    tried by itself, so that it may."""
    first = getattr(module, projections(module)[0])
    shared = {id(getattr(module, name)): getattr(module, name) for name in projections(module)}
    with unset_fake_temporarily(), torch.device("cpu"), torch.no_grad(), torch.random.fork_rng([]):
        others = [p for p in module.parameters() if id(p) not in shared]  # few, but for theirs
        own = {id(p): nn.Parameter(torch.rand(p.shape)) for p in others}
        gate = _gate_of(copy.deepcopy(module, own | shared).train())
        y = torch.randn(64, first.shape[2 if module.is_transposed else 1])
        try:
            state, same = torch.get_rng_state(), torch.equal(gate(y), gate(y))
        except Exception:
            return True
        return not same or not torch.equal(torch.get_rng_state(), state)


def sample_experts_(
    model: nn.Module, sampler: Sampler, left: dict[str, list[str]] | None = None
) -> list[str]:
    """Have the experts in ``model`` sample their inputs while they train, in place.

    Which ones, ``sampler.config`` says by the names of their parameters; by default those that
    train, in a block. The sampler's ``skipped`` tells the reason for the others.

    Args:
        left: gets the modules whose gate keeps all that autograd does: reason -> qualified names.

    Returns:
        The qualified names of the parameters whose gradients are estimated from now on.
    """
    inside = {module for _, module in in_blocks(model)}
    for prefix, module in model.named_modules():
        if not all(hasattr(module, one) for one in LAYOUT):
            continue
        names = {}
        for own in projections(module):
            name = f"{prefix}.{own}"
            reason = why_not_chosen(name, sampler.config, module in inside) or _why_not(module, own)
            if reason is None:
                names[own] = name
                sampler.skipped.pop(name, None)
            else:
                sampler.skipped[name] = reason
        if names:
            module.forward = run = SampledExperts(module, sampler, names)
            if left is not None and not run.repeats:
                left.setdefault(f"{type(module).__name__}: {GATE_STAYS}", []).append(prefix)
            sampler.experts += names.values()
    return sampler.experts


def restore_experts_(model: nn.Module) -> None:
    """Undo ``sample_experts_``, in place."""
    for module in model.modules():
        if isinstance(forward := module.__dict__.get("forward"), SampledExperts):
            forward.sampler.unfollow()
            del module.forward


def _why_not(module: nn.Module, own: str) -> str | None:
    """Why the experts' parameter ``own`` cannot be sampled."""
    both = [module._parameters.get(name) for name in projections(module)]
    if any(p is None or p.dim() != 3 or p.dtype.itemsize < 2 for p in both):
        return "experts whose weights are no plain 3-D parameters (adapters, quantised)"
    if "forward" in module.__dict__ or not hasattr(type(module).forward, "__wrapped__"):
        return "its forward was replaced"
    if not module._parameters[own].requires_grad:  # type: ignore[union-attr]
        return "frozen: it saves nothing"
    return None
