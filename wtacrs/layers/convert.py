"""The swap: norms, dropouts and activations become layers that keep less, in place, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from wtacrs.config import GELU
from wtacrs.config import LAYERS as KINDS
from wtacrs.layers.gated import GatedForward, gate_, restore_gates_
from wtacrs.layers.gelu import RoundedGELU
from wtacrs.layers.masks import DoneDropout, LosslessDropout, LosslessReLU, LosslessReLUDropout
from wtacrs.layers.norm_kinds import OTHER_WEIGHT, NormKind, is_norm, key_of, norm_kind
from wtacrs.layers.norms import LosslessLayerNorm, LosslessNorm, invertible, look
from wtacrs.randomness import Randomness

# Modules whose ``act`` is followed by their ``dropout`` at once, by class name.
ACT_THEN_DROPOUT = ("T5DenseActDense",)
TOO_SMALL = "a weight is zero, or too small beside its bias"


def save_less_(
    model: nn.Module,
    kinds: Sequence[str] = KINDS,
    gelu: str = "exact",
    seed: int = 0,
    left: dict[str, list[str]] | None = None,
) -> dict[str, str]:
    """Turn layers of ``model`` into layers that keep less for the backward pass, in place.

    The objects stay. Gradients are the plain ones up to rounding, unbiased with gelu="rounded".

    Args:
        kinds: of "norm" (nn.LayerNorm over the last dimension, and what ``norm_kinds`` finds),
            "dropout" (nn.Dropout), "relu" (nn.ReLU; in T5 with its dropout), "gate" (``gated``).
        gelu: "exact" leaves GELU as it is, "rounded" keeps its derivative in 8 bits.
        seed: of the rounding, whose random numbers are a stream of their own.
        left: gets the norms that stay as they are: reason -> qualified names.

    Returns:
        Qualified name -> name of the new class.

    Raises:
        ValueError: an unknown kind, or the model has none of these layers.
    """
    _check(kinds, gelu)
    classes = _fused(model) if {"relu", "dropout"} <= {*kinds} else {}
    norms = _norms(model) if "norm" in kinds else {}
    rounding, turned = Randomness(seed, "rounding"), {}
    for name, module in model.named_modules():
        kind = norms.get(module)
        if isinstance(kind, str) and left is not None:
            left.setdefault(kind, []).append(name)
        new = classes.get(module) or _lossless_class(module, kinds, gelu, kind)
        if new and "plain_class" not in module.__dict__:
            _turn(module, new, kind, rounding)
            turned[name] = new.__name__
    gates = gate_(model) if "gate" in kinds else []
    if not (turned := turned | dict.fromkeys(gates, GatedForward.__name__)):
        raise _nothing(model, kinds, gelu)
    return turned


def _check(kinds: Sequence[str], gelu: str) -> None:
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"unknown kinds {unknown}; choose from {', '.join(KINDS)}")
    if gelu not in GELU:
        raise ValueError(f"gelu={gelu!r} is unknown; choose {' or '.join(GELU)}")


def _turn(module: Any, new: type[nn.Module], kind: Any, rounding: Randomness) -> None:
    """Make ``module`` one of the class ``new``, with what that needs to know."""
    module.plain_class = type(module)
    module.__class__ = new
    if isinstance(module, LosslessNorm):
        module.kind = kind
    if isinstance(module, (LosslessLayerNorm, LosslessNorm)):
        look(module)
    if isinstance(module, RoundedGELU):
        module.rounding = rounding


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
            own = ("plain_class", "rounding", "dropout_after", "inverts", "in_bfloat16", "kind")
            for name in own:
                module.__dict__.pop(name, None)


def plain_after_all(model: nn.Module) -> dict[str, str]:
    """Qualified name -> why it computes as before, of the norms whose weights had no values when
    they were turned, and then had such as hide what was normalised."""
    return {
        name: f"{module.plain_class.__name__}: {TOO_SMALL}"
        for name, module in model.named_modules()
        if module.__dict__.get("inverts") is False
    }


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


def _norms(model: nn.Module) -> dict[nn.Module, NormKind | str]:
    """What each norm of the model computes, or why it stays; nn.LayerNorm is known."""
    found: dict[nn.Module, NormKind | str] = {}
    tried: dict[tuple[object, ...], NormKind | str] = {}
    for module in model.modules():
        if not is_norm(module) or "plain_class" in module.__dict__:
            continue
        if type(module) is nn.LayerNorm and module.weight is not None:
            if invertible(module) is False:
                why = TOO_SMALL if module.weight.dim() == 1 else OTHER_WEIGHT
                found[module] = f"LayerNorm: {why}"
            continue
        key = key_of(module)
        if key not in tried:
            tried[key] = norm_kind(module)
        kind = tried[key]
        if isinstance(kind, NormKind) and invertible(module, offset=kind.offset) is False:
            kind = f"{type(module).__name__}: {TOO_SMALL}"
        found[module] = kind
    return found


def _lossless_class(
    module: nn.Module, kinds: Sequence[str], gelu: str, norm: NormKind | str | None
) -> type[nn.Module] | None:
    kind, name = type(module), type(module).__name__
    if kind is nn.Dropout and "dropout" in kinds and not module.inplace:
        return LosslessDropout
    if kind is nn.ReLU and "relu" in kinds and not module.inplace:
        return LosslessReLU
    if isinstance(norm, NormKind):
        return LosslessNorm
    if kind is nn.LayerNorm and "norm" in kinds and module.weight is not None:
        return LosslessLayerNorm if norm is None else None
    if gelu == "rounded" and (name == "GELUActivation" or kind is nn.GELU):
        exact = getattr(module, "approximate", "none") == "none"
        exact &= getattr(module, "act", nn.functional.gelu) is nn.functional.gelu
        return RoundedGELU if exact else None
    return None
