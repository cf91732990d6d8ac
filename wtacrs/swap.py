"""The swap: linear layers of any model become sampled layers in place, and back."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from wtacrs.config import Pattern, SamplingConfig
from wtacrs.linear_kinds import NotLinear, is_transposed, looks_linear, other_parameters
from wtacrs.sampling.linear import SampledLinear
from wtacrs.sampling.sampler import Sampler


def sample_linears_(
    model: nn.Module,
    config: SamplingConfig | None = None,
    *,
    num_samples: int | None = None,
    max_tokens: int | None = None,
) -> Sampler:
    """Turn linear layers of ``model`` into ``SampledLinear``, in place.

    They stay the same objects with the same parameters: state-dict keys, tying, ``requires_grad``,
    hooks, device and an optimizer that was made before all stay as they are.

    Args:
        model: any module. By default every trainable linear layer in its transformer blocks (the
            members of an ``nn.ModuleList``) is taken; ``config.include`` chooses otherwise.
        config: what is sampled and how; ``SamplingConfig()`` by default.
        num_samples: size of the training set, and
        max_tokens: longest sequence in it; with both, gradient norms are kept per training sample
            in a table of num_samples * max_tokens * 2 bytes for each distinct layer input.

    Returns:
        The ``Sampler`` of the model.

    Raises:
        ValueError: no layer matches (lists those there are), or the model is sampled already.
    """
    sampler = turn_linears_(model, config or SamplingConfig(), num_samples, max_tokens)
    check_matches(model, sampler)
    return sampler


def turn_linears_(
    model: nn.Module,
    config: SamplingConfig,
    num_samples: int | None = None,
    max_tokens: int | None = None,
) -> Sampler:
    """``sample_linears_``, but there may be none that matches, where experts do.

    It attaches hooks to ``model``, which the caller must undo if nothing is sampled in the end:
    by ``check_matches``, or ``sampler.unfollow()``.
    """
    chosen, skipped = _choose(model, config)
    sampler = Sampler(config, [*chosen], skipped, num_samples, max_tokens)
    for name, layer in chosen.items():
        _turn(layer, name, sampler)
    sampler.follow(model)
    return sampler


def check_matches(model: nn.Module, sampler: Sampler) -> None:
    """Raise ValueError, and let ``model`` go, if nothing in it is sampled."""
    if sampler.names or sampler.experts:
        return
    sampler.unfollow()
    config, skipped = sampler.config, sampler.skipped
    listed = "\n".join(f"  {name}: {why}" for name, why in [*skipped.items()][:20])
    raise ValueError(
        f"no linear layer matches include={config.include!r}, exclude={config.exclude!r}. "
        f"Linear layers of this {type(model).__name__} ({len(skipped)}):\n"
        f"{listed or '  none'}\nGive include=['*'] or glob patterns over these names."
    )


def _turn(layer: Any, name: str, sampler: Sampler) -> None:
    """The object stays: whoever holds it, its hooks or its parameters, holds them still."""
    if type(layer) is not nn.Linear:
        layer.plain, layer.transposed = type(layer), is_transposed(layer)
        if layer.transposed:  # sizes that an nn.Linear has
            layer.in_features, layer.out_features = layer.weight.shape
    layer.__class__ = SampledLinear
    layer.sampler, layer.name = sampler, name


def restore_linears_(model: nn.Module) -> None:
    """Turn every ``SampledLinear`` of ``model`` back into what it was, in place."""
    for module in [*model.modules()]:
        if isinstance(module, SampledLinear):
            module.sampler.unfollow()
            own = ["sampler", "name", "plain", "transposed", "without_product"]
            own += ["in_features", "out_features"] if module.transposed else []
            module.__class__ = module.plain  # type: ignore[assignment]
            for name in own:
                module.__dict__.pop(name, None)


class OwnForward:
    """The ``forward`` of one module, which hides that of its class and can call it.

    The class of the module stays what it was, for others find blocks by it. The module is held
    weakly: without a cycle, a model that is deleted is freed at once.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_module": self._module()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _module=weakref.ref(state["_module"]))

    @property
    def module(self) -> nn.Module:
        """The module.

        Raises:
            ReferenceError: it was deleted.
        """
        if (module := self._module()) is None:
            raise ReferenceError("the module of this forward was deleted")
        return module


def in_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, module) of the members of each ``nn.ModuleList`` and of all that is inside them."""
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    prefixes = tuple(f"{name}." if name else "" for name in lists)
    return [
        (name, module)
        for name, module in model.named_modules()
        if name.startswith(prefixes) and not isinstance(module, nn.ModuleList)
    ]


def attends(module: nn.Module) -> bool:
    """Whether it is an attention: by its name, or since it says whether it is causal, which those
    of transformers tell the kernels, whatever they are called."""
    return "Attention" in type(module).__name__ or hasattr(module, "is_causal")


def is_swapped(module: nn.Module) -> bool:
    """Whether ``module`` itself is one that this library has changed."""
    forward = module.__dict__.get("forward")
    ours = isinstance(module, SampledLinear) or "plain_class" in module.__dict__
    return ours or type(forward).__module__.startswith("wtacrs.")


def _choose(
    model: nn.Module, config: SamplingConfig
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The linear layers to sample by name, and the reason for each other one."""
    chosen: dict[str, nn.Module] = {}
    skipped: dict[str, str] = {}
    embeddings = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, module, inside_block in _linears(model):
        if isinstance(module, SampledLinear):
            raise ValueError(f"{name!r} is sampled already; call restore_linears_(model) first")
        reason = _reason_to_skip(name, module, config, inside_block)
        if reason is None and module.weight in embeddings and not _named(name, config.include):
            reason = "tied to the embedding; include it by its name"
        if reason is None:
            chosen[name] = module
        else:
            skipped[name] = reason
    return chosen, skipped | dict(other_parameters(model))


def _linears(model: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """(qualified name, layer, is it inside a block) of each linear layer, shared ones once."""
    inside = {module for _, module in in_blocks(model)}
    for name, module in model.named_modules():
        if looks_linear(module):
            yield name, module, module in inside


def _reason_to_skip(
    name: str, module: nn.Module, config: SamplingConfig, inside_block: bool
) -> str | None:
    if (reason := why_not_chosen(name, config, inside_block)) is not None:
        return reason
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    if not module.weight.requires_grad:
        return "frozen: it saves nothing"
    try:
        is_transposed(module)
    except NotLinear as error:
        return str(error)
    return None


def why_not_chosen(name: str, config: SamplingConfig, inside_block: bool) -> str | None:
    """Why ``include`` and ``exclude`` leave out what is called ``name``; None if they do not."""
    if config.include is None and not inside_block:
        return "outside the transformer blocks"
    if config.include is not None and not _matches(name, config.include):
        return "not included"
    return "excluded" if _matches(name, config.exclude) else None


def _named(name: str, include: Pattern | None) -> bool:
    return not (include is None or callable(include)) and name in include


def _matches(name: str, pattern: Pattern) -> bool:
    if callable(pattern):
        return bool(pattern(name))
    return any(fnmatchcase(name, glob) for glob in pattern)
