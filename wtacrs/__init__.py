"""WTA-CRS: fine-tune with a sampled fraction of the activations and an unbiased weight gradient.

See ``apply_`` for models (``sample_linears_`` for their linear layers alone), ``estimate_matmul``
and ``select`` for the mathematics.
"""

from wtacrs.apply import Handle, apply_
from wtacrs.config import PRESETS, MemoryConfig, SamplingConfig
from wtacrs.sampling.estimators import ESTIMATORS, Selection
from wtacrs.sampling.linear import SampledLinear
from wtacrs.sampling.matmul import estimate_matmul
from wtacrs.sampling.sampler import Sampler
from wtacrs.sampling.select import select
from wtacrs.swap import restore_linears_, sample_linears_

__all__ = [
    "ESTIMATORS",
    "PRESETS",
    "Handle",
    "MemoryConfig",
    "SampledLinear",
    "Sampler",
    "SamplingConfig",
    "Selection",
    "apply_",
    "estimate_matmul",
    "restore_linears_",
    "sample_linears_",
    "select",
]
