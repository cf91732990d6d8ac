"""What the page draws of costs: memory, time and score of each setting and run.

Only numbers, words and looks; ``files/plots.js`` draws them. A front joins the settings that no
other beats in both measures of a plot.
"""

from __future__ import annotations

import math
from typing import Any

from wtacrs_experiments.reports.drawing import looks
from wtacrs_experiments.reports.page.folder import Folder
from wtacrs_experiments.reports.page.origins import origin
from wtacrs_experiments.reports.runs import GROUP
from wtacrs_experiments.words import LOWER_IS_BETTER, MIB, MISSING, scale

SYMBOLS = {  # a marker of matplotlib's, as wtacrs_experiments.reports.drawing has it -> Plotly's
    **{"None": "hourglass", "s": "square", "^": "triangle-up", "X": "x", "o": "circle"},
    **{"P": "cross", "D": "diamond", "v": "triangle-down", "*": "star"},
}
VARIANTS = ("", "-open", "-open-dot", "-dot")  # of a symbol, one for each memory preset
PLANES = (("memory", "score"), ("speed", "score"), ("memory", "speed"))  # across, upward

Point = dict[str, Any]


def groups(folder: Folder) -> list[dict[str, Any]]:
    """One set of plots for each task, model, tuning and settings, with what it compares."""
    table = folder.table.assign(place=range(len(folder.table)))
    several = table.groupby(["task", "model", "tuning", "metric"])["settings"].nunique()
    ambiguous = bool((several > 1).any())
    marker = markers(folder)
    found = []
    for key, rows in table.groupby(GROUP, sort=False):
        task, model, tuning, settings, metric = key
        title = [task, model, f"{tuning} tuning", *([settings] if ambiguous else []), metric]
        series = [
            {
                "estimator": estimator,
                "memory": memory,
                **marker[estimator, memory],
                "points": [_mean(folder, row) for row in part.to_dict("records")],
                "runs": [run for place in part["place"] for run in _runs(folder, place, metric)],
            }
            for (estimator, memory), part in rows.groupby(["estimator", "memory"], sort=False)
        ]
        means = [point for one in series for point in one["points"]]
        less = metric in LOWER_IS_BETTER
        found.append(
            {
                "title": " · ".join(title),
                "score": _axis(metric),
                "less": less,
                "series": series,
                "fronts": [front(means, across, up, less) for across, up in PLANES],
            }
        )
    return found


def markers(folder: Folder) -> dict[tuple[str, str], dict[str, str]]:
    """Estimator and memory preset -> colour and symbol; a preset but the usual opens the symbol."""
    look = looks(folder.table["estimator"])
    presets = ["linear", *sorted({*folder.table["memory"]} - {"linear", "plain"})]
    variant = {name: VARIANTS[at % len(VARIANTS)] for at, name in enumerate(presets)}
    pairs = zip(folder.table["estimator"], folder.table["memory"], strict=True)
    return {
        (estimator, memory): {
            "color": look[estimator]["color"],
            "symbol": SYMBOLS[look[estimator]["marker"]] + variant.get(memory, ""),
        }
        for estimator, memory in pairs
    }


def _axis(metric: str) -> str:
    words = metric.replace("_", " ") if metric != MISSING else "no score measured"
    return f"{words} × 100" if metric != MISSING and scale(metric)[0] == 100 else words


def _mean(folder: Folder, row: dict[Any, Any]) -> Point:
    """A setting over its seeds, and the cells of its row in the table."""
    cells = folder.text.iloc[row["place"]]
    told = [f"{name}: {cell}" for name, cell in cells.items() if cell != MISSING]
    budget = "" if row["estimator"] == "full" else f"{row['budget']:g}"
    return {"label": budget, "told": told, **_measures(row, row["metric"])}


def _runs(folder: Folder, place: int, metric: str) -> list[Point]:
    """The single runs of a setting, and what a record says of itself."""
    behind = folder.runs[folder.runs["record"].isin(folder.members[place])]
    words = {"score": metric, "memory": "peak MiB", "speed": "samples/s"}
    found = []
    for row in behind[behind["status"] == "completed"].to_dict("records"):
        name, measures = row["record"], _measures(row, metric)
        told = origin(name, folder.records[name])
        method = f"{folder.text.iloc[place]['estimator']}, {row['memory']}"
        figures = [
            f"{word}: {measures[key]:.5g}"
            for key, word in words.items()
            if measures[key] is not None
        ]
        told["commit"] = told["commit"].replace(str(row["commit"]), str(row["commit"])[:8])
        kept = [f"{key}: {told[key]}" for key in ("seed", "commit", "device", "started", "took")]
        found.append({"told": [name, method, *figures, *kept], **measures})
    return found


def _measures(row: dict[Any, Any], metric: str) -> dict[str, float | None]:
    """Score as it is shown, peak in MiB, samples a second; None where unknown."""
    times, _ = scale(metric)
    return {
        "score": known(row["score"], times),
        "memory": known(row["peak_bytes"], 1 / MIB),
        "speed": known(row["samples_per_second"]),
    }


def known(value: Any, times: float = 1) -> float | None:
    """A finite number, times ``times``; else None."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return times * value


def front(points: list[Point], across: str, up: str, less: bool) -> list[list[float]]:
    """The points that no other equals or beats in both measures, from left to right.

    Args:
        less: of the score, the smaller one is better.
    """
    sign = {"memory": -1, "speed": 1, "score": -1 if less else 1}
    pairs = {(p[across], p[up]) for p in points if None not in (p[across], p[up])}

    def beaten(at: tuple[float, float]) -> bool:
        return any(
            other != at
            and sign[across] * other[0] >= sign[across] * at[0]
            and sign[up] * other[1] >= sign[up] * at[1]
            for other in pairs
        )

    return sorted([*at] for at in pairs if not beaten(at))
