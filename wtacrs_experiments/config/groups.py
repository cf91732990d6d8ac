"""The Hydra groups, but for the task: keys, types, defaults, rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from wtacrs_experiments.config.build import counted, left_out
from wtacrs_experiments.config.known import (
    ATTENTION,
    ATTENTION_OUTPUT,
    CENTRES,
    ESTIMATORS,
    GELU,
    GRAD_NORMS,
    LOSSLESS,
    NOT_SIZES,
    PRESETS,
    RECOMPUTE,
    TUNINGS,
)
from wtacrs_experiments.config.rules import (
    check_choice,
    check_distinct,
    check_filled,
    check_module,
    check_name,
    check_range,
    check_share,
    check_text,
    wrong,
)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """An unmodified transformers model and where its weights come from."""

    name: str
    source: str = "hub"  # or package, folder; scratch: new, of the type that is its path
    path: str  # hub id, package, folder or type
    config: dict[str, Any] = field(default_factory=dict)  # sizes that replace the model's own
    # The published sizes: what is planned and measured with random weights needs no file.
    architecture: dict[str, Any] | None = left_out()
    head: str | None = left_out()  # language_model: predicts the next token; for plans
    files_sha256: str | None = left_out()  # of a local folder's files, which a run finds out

    def __post_init__(self) -> None:
        check_name("model.name", self.name)
        check_choice("model.source", self.source, ("hub", "package", "folder", "scratch"))
        check_text("model.path", self.path)
        if self.source == "package":
            check_module("model.path", self.path)
        if self.head is not None:
            check_choice("model.head", self.head, ("language_model",))
        for name in ("config", "architecture"):
            for key, value in (getattr(self, name) or {}).items():
                if key in NOT_SIZES:
                    rule = "is no size of the architecture, and how a model is loaded is not yours"
                    raise wrong(f"model.{name}.{key}", value, f"{rule} to change here")
        if self.architecture is not None and not isinstance(self.model_type, str):
            raise wrong("model.architecture.model_type", self.model_type, "must be text, say bert")

    @property
    def model_type(self) -> Any:
        """The type of the architecture, as transformers names it; None if only its files tell."""
        if self.source == "scratch":
            return self.path
        return (self.architecture or {}).get("model_type")


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """Which parameters are trained. Each key but the name belongs to one tuning."""

    name: str
    rank: int | None = left_out()
    alpha: float | None = counted(left_out=True)
    dropout: float | None = left_out()
    targets: dict[str, tuple[str, ...]] | None = left_out()  # model type: last parts of names
    reduction: int | None = left_out()  # LST's r: its side network has 1 / r of the width

    def __post_init__(self) -> None:
        check_choice("tuning", self.name, TUNINGS)
        for tuning, keys in TUNINGS.items():
            for key in keys:
                value = getattr(self, key)
                if (value is None) == (self.name == tuning):
                    rule = f"is needed by tuning={tuning}"
                    if value is not None:
                        rule = f"is of tuning={tuning} alone"
                    raise wrong(f"tuning.{key}", value, rule)
        if self.reduction is not None:
            check_range("tuning.reduction", self.reduction, 1)
        if self.rank is None or self.alpha is None or self.dropout is None:
            return
        check_range("tuning.rank", self.rank, 1)
        check_range("tuning.alpha", self.alpha, above=0)
        check_share("tuning.dropout", self.dropout)
        for model_type, names in (self.targets or {}).items():
            check_filled(f"tuning.targets.{model_type}", names)
            for name in names:
                check_text(f"tuning.targets.{model_type}", name)


@dataclass(frozen=True, kw_only=True)
class EstimatorConfig:
    """How rows are picked; the fields are those of ``wtacrs.SamplingConfig``."""

    name: str
    # ||dY_n||: auto is the row's own of the last epoch, else its position's running mean; defensive
    # allows for its age.
    grad_norms: str = "auto"
    floor: float = 0.01  # share of the probability spread evenly
    include: tuple[str, ...] | None = None  # glob patterns; null: every linear layer in a block
    exclude: tuple[str, ...] = ()
    norm_table_limit_gib: float = 4.0  # most host memory for the gradient norms kept per sample
    # What is kept exactly, so that the rest alone is drawn: none, classes, lowrank; auto: lowrank
    # for pps, none for the others.
    center: str = "auto"
    rank: int = 1  # directions of lowrank
    code_sha256: str | None = left_out()  # of the plugin that it is of, which a run finds out

    def __post_init__(self) -> None:
        check_name("estimator.name", self.name)
        if self.grad_norms == "oracle":
            raise wrong(
                "estimator.grad_norms",
                "oracle",
                "runs the backward pass twice: a measurement, not a way to train. See it with "
                "experiment=variance, train with estimator.grad_norms=auto",
            )
        check_choice("estimator.grad_norms", self.grad_norms, GRAD_NORMS)
        check_share("estimator.floor", self.floor)
        remedy = "to keep no table choose estimator.grad_norms=position"
        limit = self.norm_table_limit_gib
        check_range("estimator.norm_table_limit_gib", limit, above=0, remedy=remedy)
        check_choice("estimator.center", self.center, ("auto", *CENTRES))
        check_range("estimator.rank", self.rank, 1)
        for key in ("include", "exclude"):
            for pattern in getattr(self, key) or ():
                check_text(f"estimator.{key}", pattern)
        if self.centring != "none" and self.name in ("full", "deterministic"):
            why = "samples nothing" if self.name == "full" else "drops rows without a scale"
            rule = f"with estimator={self.name}, which {why}: the rest would be lost, not estimated"
            raise wrong("estimator.center", self.center, f"{rule}; choose none")

    @property
    def centring(self) -> str:
        """``center``, with "auto" resolved."""
        if self.center != "auto":
            return self.center
        return "lowrank" if self.name == "pps" else "none"


FULL = EstimatorConfig(name="full", grad_norms="none", floor=0.0)


@dataclass(frozen=True, kw_only=True)
class MemoryChoice:
    """What the model keeps for its backward pass: a preset of the library, key by key.

    A key that is null is as the preset has it; once made, none is null.
    """

    name: str = "linear"
    sample_linears: bool | None = None  # false: the estimator is full, whatever its group says
    lossless: tuple[str, ...] | None = None  # norm, dropout, relu, gate: exact ones
    gelu: str | None = None  # exact, or rounded: an unbiased derivative in 8 bits
    attention: str | None = None  # default, eager, sdpa, recompute, sampled
    recompute: str | None = None  # none, attention, block; checkpoint(_offload): transformers' own
    attention_output: str | None = None  # of what is recomputed: kept, recomputed; auto

    def __post_init__(self) -> None:
        check_choice("memory.name", self.name, PRESETS)
        for key, value in PRESETS[self.name].items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, value)
        for kind in self.lossless or ():
            check_choice("memory.lossless", kind, LOSSLESS)
        check_distinct("memory.lossless", self.lossless or ())
        choices = {"gelu": GELU, "attention": ATTENTION, "recompute": RECOMPUTE}
        choices |= {"attention_output": ATTENTION_OUTPUT}
        for key, known in choices.items():
            check_choice(f"memory={self.name}: memory.{key}", getattr(self, key), known)
        same = {"attention": "kept", "block": "auto"}.get(self.recompute or "", "recomputed")
        if self.attention_output == same:
            object.__setattr__(self, "attention_output", "auto")  # equal runs are written alike


def check_estimator(estimator: EstimatorConfig, plugins: tuple[str, ...]) -> None:
    """A known estimator; one of a plugin is known once that is imported, which is not yet."""
    if not plugins:
        check_choice("estimator", estimator.name, ESTIMATORS)
