"""The swap: norms, dropouts and activations become layers that keep less, in place, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from wtacrs.config import GELU
from wtacrs.config import LAYERS as KINDS
from wtacrs.layers.gated import GatedForward, gate_, restore_gates_
from wtacrs.layers.gelu import RoundedGELU
from wtacrs.layers.masks import DoneDropout, LosslessDropout, LosslessReLU, LosslessReLUDropout
from wtacrs.layers.norms import LosslessLayerNorm, LosslessRMSNorm
from wtacrs.randomness import Randomness

# Modules whose ``act`` is followed by their ``dropout`` at once, by class name.
ACT_THEN_DROPOUT = ("T5DenseActDense",)
# Largest relative error that rounding a norm's output may cause in what is recovered from it.
MAX_ERROR = 0.08
MAX_RATIO = 1e3  # of |bias| to |weight|, however fine the dtype: training moves both


def save_less_(
    model: nn.Module, kinds: Sequence[str] = KINDS, gelu: str = "exact", seed: int = 0
) -> dict[str, str]:
    """Turn layers of ``model`` into layers that keep less for the backward pass, in place.

    The layers stay the same objects with the same parameters. Gradients are those of the plain
    layers up to rounding; with ``gelu="rounded"`` they are unbiased.

    Args:
        model: any module.
        kinds: of "norm" (nn.LayerNorm over the last dimension, T5's norm and its likes), "dropout"
            (nn.Dropout), "relu" (nn.ReLU; together with the dropout after it in T5), "gate" (gated
            feed-forwards, ``gated``).
        gelu: "exact" leaves GELU as it is, "rounded" keeps its derivative in 8 bits.
        seed: of the rounding, whose random numbers are a stream of their own.

    Returns:
        Qualified name -> name of the new class, of each layer that was turned.

    Raises:
        ValueError: an unknown kind, or the model has none of these layers.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"unknown kinds {unknown}; choose from {', '.join(KINDS)}")
    if gelu not in GELU:
        raise ValueError(f"gelu={gelu!r} is unknown; choose {' or '.join(GELU)}")
    classes = _fused(model) if {"relu", "dropout"} <= {*kinds} else {}
    rounding, turned = Randomness(seed, "rounding"), {}
    for name, module in model.named_modules():
        new = classes.get(module) or _lossless_class(module, kinds, gelu)
        if new is not None and "plain_class" not in module.__dict__:
            module.plain_class = type(module)
            module.__class__ = new
            if isinstance(module, LosslessLayerNorm):
                module.in_bfloat16 = _invertible(module, torch.bfloat16)
            if isinstance(module, RoundedGELU):
                module.rounding = rounding
            turned[name] = new.__name__
    if "gate" in kinds:
        turned |= dict.fromkeys(gate_(model), GatedForward.__name__)
    if not turned:
        raise _nothing(model, kinds, gelu)
    return turned


def _nothing(model: nn.Module, kinds: Sequence[str], gelu: str) -> ValueError:
    looked_for = ", ".join([*kinds, *(["gelu"] if gelu == "rounded" else [])])
    present = ", ".join(sorted({type(module).__name__ for module in model.modules()}))
    return ValueError(
        f"this {type(model).__name__} has none of the layers looked for ({looked_for}); "
        f"its modules are of the classes {present}"
    )


def restore_layers_(model: nn.Module) -> None:
    """Turn the layers that ``save_less_`` turned back into what they were, in place."""
    restore_gates_(model)
    for module in model.modules():
        if (plain := module.__dict__.get("plain_class")) is not None:
            module.__class__ = plain
            for name in ("plain_class", "rounding", "dropout_after", "in_bfloat16"):
                module.__dict__.pop(name, None)


def rounding_of(model: nn.Module) -> Randomness | None:
    """The owner of the rounding's random numbers, or None if nothing in ``model`` is rounded."""
    return next((m.rounding for m in model.modules() if isinstance(m, RoundedGELU)), None)


def _fused(model: nn.Module) -> dict[nn.Module, type[nn.Module]]:
    """The pairs of ReLU and dropout that one mask can serve."""
    classes: dict[nn.Module, type[nn.Module]] = {}
    for module in model.modules():
        if type(module).__name__ in ACT_THEN_DROPOUT:
            act, dropout = module.act, module.dropout
            if type(act) is nn.ReLU and type(dropout) is nn.Dropout and not dropout.inplace:
                act.dropout_after = (dropout,)  # type: ignore[assignment]
                classes[act], classes[dropout] = LosslessReLUDropout, DoneDropout
    return classes


def _lossless_class(module: nn.Module, kinds: Sequence[str], gelu: str) -> type[nn.Module] | None:
    kind, name = type(module), type(module).__name__
    if kind is nn.Dropout and "dropout" in kinds and not module.inplace:
        return LosslessDropout
    if kind is nn.ReLU and "relu" in kinds and not module.inplace:
        return LosslessReLU
    if kind is nn.LayerNorm and "norm" in kinds:
        return LosslessLayerNorm if module.weight is not None and _invertible(module) else None
    if name.endswith(("RMSNorm", "T5LayerNorm")) and "norm" in kinds:
        names = {name for name, _ in module.named_parameters()}
        alike = hasattr(module, "variance_epsilon") and names == {"weight"}
        return LosslessRMSNorm if alike and _invertible(module) else None
    if gelu == "rounded" and (name == "GELUActivation" or kind is nn.GELU):
        exact = getattr(module, "approximate", "none") == "none"
        exact &= getattr(module, "act", nn.functional.gelu) is nn.functional.gelu
        return RoundedGELU if exact else None
    return None


def _invertible(module: nn.Module, dtype: torch.dtype | None = None) -> bool:
    """Whether a norm's output tells what was normalised: no bias drowns it in ``dtype``."""
    weight, bias = module.get_parameter("weight"), getattr(module, "bias", None)
    if weight.dim() != 1:
        return False
    if isinstance(weight, FakeTensor) or weight.is_meta:
        return True  # a plan, without values
    size = torch.zeros_like(weight) if bias is None else bias.detach().abs()
    ratio = min(MAX_RATIO, MAX_ERROR / torch.finfo(dtype or weight.dtype).eps)
    return bool(((weight != 0) & (weight.detach().abs() * ratio >= size)).all())
