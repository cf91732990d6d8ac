"""The command line of ``python run.py``: its mode, and what Hydra is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wtacrs_experiments.config.arguments import check_arguments
from wtacrs_experiments.config.roots import RunConfig
from wtacrs_experiments.config.rules import check_choice
from wtacrs_experiments.config.sweep import check_launcher
from wtacrs_experiments.errors import UserError

MODES = ("train", "measure", "plan")
# Hydra's own options that are followed by a value.
WITH_VALUE: tuple[str, ...] = (
    "--config-name",
    "-cn",
    "--config-path",
    "-cp",
    "--config-dir",
    "-cd",
)
WITH_VALUE += ("--package", "-p", "--cfg", "-c", "--info", "-i", "--experimental-rerun")


def command(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The mode, and the arguments of that mode: Hydra's, but for ``plan``, which has its own.

    Raises:
        UserError: an argument that is wrong, found before anything is loaded.
    """
    mode, options, texts, folders = "train", [], [], []
    seen: list[str] = []
    given = iter(arguments)
    for argument in given:
        if argument.startswith("mode="):
            if seen:
                raise UserError(f"mode is given twice: {seen[0]} and {argument}")
            seen.append(argument)
            mode = argument.removeprefix("mode=")
            check_choice("mode", mode, MODES)
        elif argument.startswith("-"):
            options.append(argument)
            name, _, value = argument.partition("=")
            if argument in WITH_VALUE:
                value = next(given, "")
                options.append(value)
            if name in ("--config-dir", "-cd"):
                folders.append(Path(value))
        else:
            texts.append(argument)
    if mode == "plan":
        return mode, [*options, *texts]
    if mode == "measure":
        if any(text.startswith("measure=") for text in texts):
            raise UserError("mode=measure is measure=memory; leave the other out")
        texts += ["mode=measure", "measure=memory"]
    sweeps = any(option in ("-m", "--multirun") for option in options)
    check_launcher(texts, sweeps)
    return mode, [*options, *check_arguments(RunConfig, texts, sweeps=sweeps, folders=folders)]
