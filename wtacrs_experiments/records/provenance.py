"""Where a result comes from: code, packages, machine."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from wtacrs_experiments.config import ROOT
from wtacrs_experiments.records.code import git

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "hydra-core", "numpy", "wtacrs")
OF_CODE = ("--", ".", ":(exclude)results")
SOURCES = ("--", "*.py", "*.yaml", ":(exclude)results")


def provenance() -> dict[str, Any]:
    """The section ``provenance`` of a record, but for ``seconds``; what is unknown is None."""
    return {
        "git_commit": git("rev-parse", "HEAD", root=ROOT),
        "git_dirty": is_dirty(),
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device_name": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def multiplies_bf16() -> bool:
    """Whether oneDNN multiplies bf16 matrices on this CPU, which from AVX-512 on it does, on x86.

    Where torch is without oneDNN, nothing is known and torch's own way is taken for good.
    """
    if not torch.backends.mkldnn.is_available():
        return True
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def is_dirty() -> bool | None:
    """Whether the code that runs is not the commit's: a change, or a source file it does not hold.

    ``results/`` does not count: what lies there is made by the code and is no part of it.
    """
    changed = git("status", "--porcelain", "--untracked-files=no", *OF_CODE, root=ROOT)
    added = git("ls-files", "--others", "--exclude-standard", *SOURCES, root=ROOT)
    return None if changed is None or added is None else bool(changed or added)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    model = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), None)
    way = "" if multiplies_bf16() else ", bf16 by float32"
    return f"{model}, {os.cpu_count()} cores{way}"
