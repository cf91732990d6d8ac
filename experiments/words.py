"""Units and words that whatever speaks to people shares."""

MIB, GIB = 2**20, 2**30
MISSING = "–"
#: Of what the peak is made, as ``wtacrs.measure.step`` names it, and how it is shown.
AT_PEAK = {
    "parameter": "parameters",
    "gradient": "gradients",
    "optimizer": "optimizer state",
    "saved": "saved activations",
    "temporary": "temporaries",
    "other": "batch and buffers",
}


def in_bytes(count: int) -> str:
    """Bytes for people."""
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"


def method_name(estimator: str, center: str | None) -> str:
    """The estimator, with what it centres if it does: "pps", "pps/lowrank"."""
    return estimator if center in (None, "none") or estimator == "full" else f"{estimator}/{center}"
