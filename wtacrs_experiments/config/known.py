"""What the library offers, by name: a copy that needs no torch, held against it by a test."""

from __future__ import annotations

from typing import Any

ESTIMATORS = ("full", "uniform", "crs", "deterministic", "wtacrs", "wtacrs_exact", "pps")
GRAD_NORMS = ("none", "position", "sample", "auto", "defensive")
CENTRES = ("none", "classes", "lowrank")
LOSSLESS = ("norm", "dropout", "relu", "gate", "loss")
GELU = ("exact", "rounded")
ATTENTION = ("default", "eager", "sdpa", "recompute", "sampled")
RECOMPUTE = ("none", "attention", "block", "checkpoint", "checkpoint_offload")
ATTENTION_OUTPUT = ("auto", "kept", "recomputed")

NOTHING: dict[str, Any] = {
    **{"sample_linears": False, "lossless": (), "gelu": "exact"},
    **{"attention": "default", "recompute": "none", "attention_output": "auto"},
}
_SAMPLED = NOTHING | {"sample_linears": True}
_EXACT = _SAMPLED | {"lossless": LOSSLESS, "attention": "recompute"}
#: Preset -> the keys of the group ``memory``.
PRESETS: dict[str, dict[str, Any]] = {
    "plain": NOTHING,
    "linear": _SAMPLED,
    "paper": _SAMPLED | {"lossless": LOSSLESS, "attention": "sampled"},
    "lean": _EXACT | {"recompute": "attention"},
    "leanest": _EXACT | {"recompute": "block"},
    "checkpoint": NOTHING | {"recompute": "checkpoint"},
    "checkpoint_offload": NOTHING | {"recompute": "checkpoint_offload"},
}

#: Of the Trainer (its argument optim), the default first.
OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "adafactor", "adamw_8bit", "paged_adamw_8bit")
BITSANDBYTES = OPTIMIZERS[3:]
PRECISIONS = ("fp32", "bf16-autocast", "bf16")
CLASSIFICATION = ("accuracy", "f1", "matthews_correlation")
REGRESSION = ("pearson", "spearman")
LANGUAGE = ("perplexity", "token_accuracy")
HUB = "hub:"  # before the name of data on the hub, in place of a file of rows
PYTHON_LIBRARY = "python-library"  # in place of a file of rows
TEXT_TO_TEXT = ("t5",)  # types of models that answer in words
LADDERS = ("t5", "bert", "mpnet")  # types of models that tuning=lst knows
#: What trains which parameters -> its keys of the group ``tuning``.
TUNINGS: dict[str, tuple[str, ...]] = {
    "full": (),
    "lora": ("rank", "alpha", "dropout", "targets"),
    "lst": ("reduction",),
}

#: Arguments of ``from_pretrained`` that would run or fetch something else than the config names.
NOT_SIZES = frozenset(
    [
        "attn_implementation",
        "cache_dir",
        "code_revision",
        "device_map",
        "dtype",
        "force_download",
        "from_flax",
        "from_tf",
        "ignore_mismatched_sizes",
        "local_files_only",
        "low_cpu_mem_usage",
        "num_labels",
        "output_loading_info",
        "problem_type",
        "proxies",
        "quantization_config",
        "resume_download",
        "return_unused_kwargs",
        "revision",
        "state_dict",
        "subfolder",
        "token",
        "torch_dtype",
        "trust_remote_code",
        "use_auth_token",
        "use_safetensors",
        "variant",
        "weights_only",
    ]
)
