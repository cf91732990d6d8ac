"""What the page draws of losses: a curve a run, in training and after each epoch."""

from __future__ import annotations

from typing import Any

from wtacrs_experiments.records.record import RunRecord
from wtacrs_experiments.reports.page.folder import Folder
from wtacrs_experiments.reports.page.plots import known, markers
from wtacrs_experiments.reports.runs import SETTING

SHOWN_FIRST = 6  # before anything is chosen


def curves(folder: Folder) -> list[dict[str, Any]]:
    """The losses of each run that has some: in training, and after each epoch on the validation."""
    marker, found = markers(folder), []
    told = [name for name in ("task", "model", "tuning") if folder.runs[name].nunique() > 1]
    for row in folder.runs.to_dict("records"):
        record = folder.records[row["record"]]
        training, evaluation = losses(record)
        if not training and not evaluation:
            continue
        found.append(
            {
                "name": row["record"],
                "label": " · ".join([*(row[name] for name in told), _method(row)]),
                **marker[row["estimator"], row["memory"]],
                "setting": [str(row[key]) for key in SETTING],
                "training": training,
                "evaluation": evaluation,
            }
        )
    seen: list[Any] = []
    for curve in found:  # the first seed of the first settings
        setting = curve.pop("setting")
        curve["chosen"] = setting not in seen and len(seen) < SHOWN_FIRST
        if curve["chosen"]:
            seen.append(setting)
    return found


def _method(row: dict[Any, Any]) -> str:
    budget = "" if row["estimator"] == "full" else f"@{row['budget']:g}"
    memory = "" if row["memory"] in ("linear", "plain") else f", {row['memory']}"
    return f"{row['estimator']}{budget}{memory}, seed {row['seed']}"


def losses(record: RunRecord) -> tuple[list[list[float]], list[list[float]]]:
    """Pairs (step, loss) of training and of evaluation; none where the record has no such list."""
    try:
        metrics = record.metrics or {}
        curve, epochs = metrics.get("loss_curve") or {}, metrics.get("per_epoch") or []
        training = [*zip(curve.get("step", []), curve.get("loss", []), strict=False)]
        evaluation = [(epoch.get("step"), epoch.get("loss")) for epoch in epochs]
    except (AttributeError, TypeError):
        return [], []
    return _finite(training), _finite(evaluation)


def _finite(pairs: list[Any]) -> list[list[float]]:
    return [[*pair] for pair in pairs if all(known(value) is not None for value in pair)]
