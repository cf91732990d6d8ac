"""What the user decides, as frozen, validated objects: how to sample, and what to keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from math import inf
from typing import Any

from wtacrs.sampling.centre import CENTRES
from wtacrs.sampling.estimators import ESTIMATORS, check_budget, check_estimator

Pattern = Sequence[str] | Callable[[str], bool]

GRAD_NORM_SOURCES = ("none", "position", "sample", "auto", "defensive")


@dataclass(frozen=True)
class SamplingConfig:
    """How the linear layers of a model are sampled.

    Args:
        estimator: a key of ``wtacrs.ESTIMATORS``, or "full" for the plain layer.
        budget: share of the rows (batch x token) that is kept, k / n, in (0, 1].
        include: glob patterns over qualified names, or a predicate over them. ``None`` takes every
            linear layer inside a transformer block (a member of an ``nn.ModuleList``), which
            leaves embeddings, pooler and head alone.
        exclude: the same, taken away from ``include``.
        grad_norms: where the estimate of ||dY_n|| comes from, before the backward pass.
            "none": nowhere, the weights are ||X_n|| alone; "position": the running mean of the
            row's token position; "sample": the row's own norm when its sample was last seen (a
            host table with an entry per training sample and token), the mean over all positions
            for samples not yet seen; "auto": "sample", but "position" for samples not yet seen;
            "defensive": "auto", with a row's own norm, which is an epoch old, guarded against what
            has changed since (see ``wtacrs.sampling.grad_norms``): for regression, above all.
        floor: share of the probability that is spread evenly over the valid rows, in [0, 1). Above
            zero it keeps the estimate unbiased when a stale gradient norm is zero, and bounds
            every scale.
        seed: of the sampler; its generators differ by purpose and by rank.
        norm_table_limit_gib: most host memory, in GiB, for the table per sample.
        center: what of each input is kept exactly, so that only the rest is sampled (see
            ``wtacrs.sampling.centre``): "none"; "classes", means of the first, the last and the
            other rows of a sample (of all rows where nothing is known of them); "lowrank", beside
            them ``rank`` directions; "auto": "lowrank" for pps, "none" for the others. What it
            keeps comes out of the budget.
        rank: directions of "lowrank", at least 1.

    Raises:
        ValueError: a value outside its rule; the message names value, rule and remedy.
    """

    estimator: str = "wtacrs"
    budget: float = 0.3
    include: Pattern | None = None
    exclude: Pattern = ()
    grad_norms: str = "auto"
    floor: float = 0.01
    seed: int = 0
    norm_table_limit_gib: float = 4.0
    center: str = "auto"
    rank: int = 1

    @property
    def centring(self) -> str:
        """``center``, with "auto" resolved."""
        if self.center != "auto":
            return self.center
        return "lowrank" if self.estimator == "pps" else "none"

    def __post_init__(self) -> None:
        check_estimator(self.estimator)
        check_budget(self.budget)
        if self.grad_norms == "oracle":
            raise ValueError(
                "grad_norms='oracle' runs the backward pass twice: it is a measurement, not a way "
                "to train. See it with experiment=variance, train with grad_norms='auto'"
            )
        if self.grad_norms not in GRAD_NORM_SOURCES:
            raise ValueError(
                f"grad_norms={self.grad_norms!r} is unknown; "
                f"choose one of {', '.join(GRAD_NORM_SOURCES)}"
            )
        for name, kinds in _NUMBERS.items():
            if type(value := getattr(self, name)) not in kinds:
                raise ValueError(f"{name}={value!r} must be {_KINDS[kinds]}")
        if not 0.0 <= self.floor < 1.0:
            raise ValueError(
                f"floor={self.floor} is outside [0, 1); 0.01 is the default, 0 switches it off"
            )
        if not self.norm_table_limit_gib > 0:
            raise ValueError(
                f"norm_table_limit_gib={self.norm_table_limit_gib} must be above 0; "
                "to keep no table choose grad_norms='position'"
            )
        self._check_center()
        for name in ("include", "exclude"):
            if isinstance(getattr(self, name), str):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is a string; "
                    f"give a list of glob patterns, [{getattr(self, name)!r}], or a predicate"
                )

    def _check_center(self) -> None:
        if self.center not in ("auto", *CENTRES):
            raise ValueError(
                f"center={self.center!r} is unknown; choose one of {', '.join(('auto', *CENTRES))}"
            )
        if type(self.rank) is not int or self.rank < 1:
            raise ValueError(f"rank={self.rank!r} must be an integer of at least 1")
        sampled = self.estimator != "full"
        takes = sampled and getattr(ESTIMATORS[self.estimator], "unbiased", True)
        if self.centring != "none" and not takes:
            why = "drops rows without a scale" if sampled else "samples nothing"
            raise ValueError(
                f"center={self.center!r} with estimator={self.estimator!r}, which {why}: the rest "
                "would be lost, not estimated. Choose center='none' or another estimator"
            )


_NUMBERS = {"floor": (int, float), "norm_table_limit_gib": (int, float), "seed": (int,)}
_KINDS = {(int, float): "a number", (int,): "an integer"}
LAYERS = ("norm", "dropout", "relu", "gate")
LOSSLESS = (*LAYERS, "loss")
GELU = ("exact", "rounded")
ATTENTION = ("default", "eager", "sdpa", "recompute", "sampled")
RECOMPUTE = ("none", "attention", "block", "checkpoint", "checkpoint_offload")
ATTENTION_OUTPUT = ("auto", "kept", "recomputed")
# Beside it lie the inputs of blocks, as large, and the logits, which may be as large as both.
SHARE_OF_GRADIENTS = 1 / 8


@dataclass(frozen=True)
class MemoryConfig:
    """What a model keeps for its backward pass.

    Args:
        sampling: how linear layers are sampled; None leaves them plain.
        lossless: what becomes exact and keeps less (``wtacrs.layers``), of "norm", "dropout",
            "relu", "gate" (gated feed-forwards) and "loss" (of a language model, with its head).
        gelu: "exact" leaves it as it is, "rounded" keeps its derivative in 8 bits, unbiased.
        attention: "default" (the model's), "eager" and "sdpa" (transformers'), "recompute" and
            "sampled" (``wtacrs.attention``).
        recompute: what is computed again in the backward pass (``wtacrs.recompute``): "attention",
            "block"; or transformers' own switch, "checkpoint", "checkpoint_offload".
        attention_output: whether that keeps fused attention's output on long sequences
            (``wtacrs.attention.kept``): "kept", which costs memory and saves time, "recomputed",
            or "auto", "kept" where attention alone is recomputed, and where the gradients that a
            block will have take much more.

    Raises:
        ValueError: a value that is unknown, or two that contradict each other.
    """

    sampling: SamplingConfig | None = field(default_factory=SamplingConfig)
    lossless: tuple[str, ...] = ()
    gelu: str = "exact"
    attention: str = "default"
    recompute: str = "none"
    attention_output: str = "auto"

    @property
    def attention_output_share(self) -> float:
        """Attention's output is kept if it takes no more than this share of the gradients that a
        block will have: ``attention_output`` as a number."""
        if self.attention_output == "auto":
            return inf if self.recompute == "attention" else SHARE_OF_GRADIENTS
        return inf if self.attention_output == "kept" else 0.0

    @property
    def samples(self) -> bool:
        """Whether any linear layer is sampled."""
        return self.sampling is not None and self.sampling.estimator != "full"

    def __post_init__(self) -> None:
        choices = {"gelu": GELU, "attention": ATTENTION, "recompute": RECOMPUTE}
        choices |= {"attention_output": ATTENTION_OUTPUT}
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r} is unknown; choose {', '.join(known)}")
        if not isinstance(self.sampling, SamplingConfig | None):
            raise ValueError(f"sampling={self.sampling!r} must be a SamplingConfig, or None")
        if not isinstance(self.lossless, (tuple, list)):
            raise ValueError(f"lossless={self.lossless!r}; give a tuple of kinds")
        if unknown := [kind for kind in self.lossless if kind not in LOSSLESS]:
            raise ValueError(f"lossless holds {unknown}; choose from {', '.join(LOSSLESS)}")
        object.__setattr__(self, "lossless", tuple(self.lossless))
        if self.attention == "sampled" and not self.samples:
            raise ValueError("attention='sampled' needs a sampling estimator, not full")
        recomputes = self.attention == "recompute" and self.recompute in ("attention", "block")
        if self.attention_output == "kept" and not recomputes:
            raise ValueError(
                "attention_output='kept' needs attention='recompute' and recompute='attention' or "
                "'block'"
            )


_EXACT: dict[str, Any] = {"lossless": LOSSLESS, "attention": "recompute"}

#: Name -> what it stands for. See the README for what each keeps and costs.
PRESETS: dict[str, MemoryConfig] = {
    "plain": MemoryConfig(sampling=None),
    "linear": MemoryConfig(),
    "paper": MemoryConfig(lossless=LOSSLESS, attention="sampled"),
    "lean": MemoryConfig(**_EXACT, recompute="attention"),
    "leanest": MemoryConfig(**_EXACT, recompute="block"),
    "checkpoint": MemoryConfig(sampling=None, recompute="checkpoint"),
    "checkpoint_offload": MemoryConfig(sampling=None, recompute="checkpoint_offload"),
}


def preset(name: str, **sampling: Any) -> MemoryConfig:
    """The ``MemoryConfig`` called ``name``, its sampling changed by keys of ``SamplingConfig``.

    Raises:
        ValueError: an unknown preset or key, or a key for a preset that samples nothing.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    known = [one.name for one in fields(SamplingConfig)]
    if unknown := [key for key in sampling if key not in known]:
        raise ValueError(
            f"unknown keys {unknown}; those of a SamplingConfig are {', '.join(known)}"
        )
    chosen = PRESETS[name]
    if chosen.sampling is None:
        if sampling:
            raise ValueError(f"preset {name!r} samples nothing, so {[*sampling]} have no meaning")
        return chosen
    return replace(chosen, sampling=replace(chosen.sampling, **sampling))


def config_of(memory: str | MemoryConfig, sampling: dict[str, Any]) -> MemoryConfig:
    """The one config that both say.

    Raises:
        ValueError: neither a preset's name nor a ``MemoryConfig``, or two that say the same thing.
    """
    if isinstance(memory, str):
        return preset(memory, **sampling)
    if not isinstance(memory, MemoryConfig):
        raise ValueError(
            f"memory is a {type(memory).__name__}; give a preset's name or MemoryConfig"
        )
    if sampling:
        raise ValueError(f"{[*sampling]} and a MemoryConfig are two sayings; give one")
    return memory
