"""What a user decides, typed: the schema of every Hydra group and of the two commands.

The dataclasses hold keys, types, defaults and rules; the files of ``conf/`` say only what differs.
A config is checked once, when it is made, and is never a dictionary afterwards. Nothing here
imports torch: a wrong argument is refused before anything is loaded.
"""

from wtacrs_experiments.config.build import as_record, build
from wtacrs_experiments.config.compose import compose, typed
from wtacrs_experiments.config.groups import (
    EstimatorConfig,
    MemoryChoice,
    ModelConfig,
    TuningConfig,
)
from wtacrs_experiments.config.places import CONF, PAPER, ROOT
from wtacrs_experiments.config.roots import PlanConfig, RunConfig
from wtacrs_experiments.config.running import LoggingConfig, MeasureConfig, TrainingConfig
from wtacrs_experiments.config.sentences import HubConfig
from wtacrs_experiments.config.task import TaskConfig

__all__ = [
    "CONF",
    "PAPER",
    "ROOT",
    "EstimatorConfig",
    "HubConfig",
    "LoggingConfig",
    "MeasureConfig",
    "MemoryChoice",
    "ModelConfig",
    "PlanConfig",
    "RunConfig",
    "TaskConfig",
    "TrainingConfig",
    "TuningConfig",
    "as_record",
    "build",
    "compose",
    "typed",
]
