"""Records of the variance made by hand."""

from wtacrs_experiments.records.record import write_record

LAYERS = [f"bert.encoder.layer.{block}.output.dense" for block in range(3)]
NORMS = [8.0, 1.0, 1.0]
PPS = [0.1, 2.0, 4.0]  # total (0.8 + 2 + 4) / 10
WTACRS = [0.4, 0.0, 9.0]  # exact in one layer; total (3.2 + 0 + 9) / 10
LOWRANK = [0.1, 1.0, 1.0]  # total (0.8 + 1 + 1) / 10


def probe(step, **errors):
    """A probe with these errors of each method, at budget 0.3 and source auto or as given."""
    entries = []
    for name, values in errors.items():
        method, *chosen = name.split("__")
        budget, source = [*chosen, *("0.3", "auto")[len(chosen) :]]
        estimator, _, centre = method.partition("_")
        entries.append(
            {
                **{"estimator": estimator, "center": centre or "none"},
                **{"budget": float(budget), "source": source, "relative_squared_error": values},
            }
        )
    return {
        **{"step": step, "rows": 9, "layers": LAYERS, "squared_norm": NORMS, "errors": entries},
        "winners": [
            {**{"budget": entry["budget"], "source": entry["source"]}, "share": [0.1, 0.2, 0.3]}
            for entry in entries
        ],
        "winner_mass": {LAYERS[0]: [0.5, 1.0]},
    }


def write_probes(record, path, *probes, task="cola", model="minilm", status="completed"):
    """Write ``record`` with these probes, of this task and model, to ``path``; returns it."""
    record.status = status
    record.config["task"]["name"], record.config["model"]["name"] = task, model
    record.metrics["per_epoch"] = [{"step": 5}, {"step": 10}]
    record.variance = {"probes": list(probes)}
    path.parent.mkdir(exist_ok=True)
    write_record(record, path)
    return path
