"""Units and words that whatever speaks to people shares."""

MIB, GIB = 2**20, 2**30
MISSING = "–"
CAUSE = "cause of more than 5 %"  # a column of words
LOWER_IS_BETTER = ("perplexity",)  # of the metrics
#: Of what the peak is made, as ``wtacrs.measure.step`` names it, and how it is shown.
AT_PEAK = {
    "parameter": "parameters",
    "gradient": "gradients",
    "optimizer": "optimizer state",
    "saved": "saved activations",
    "temporary": "temporaries",
    "other": "batch and buffers",
}


def scale(metric: str) -> tuple[int, int]:
    """By what a score is multiplied to be shown, and its digits: 27.2, or perplexity 2.345."""
    return (1, 3) if metric in LOWER_IS_BETTER else (100, 1)


def in_bytes(count: int) -> str:
    """Bytes for people."""
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"


def duration(seconds: float) -> str:
    """A time for people."""
    minutes = round(seconds / 60)
    return (
        f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{seconds / 60:.1f} min"
    )


def method_name(estimator: str, center: str | None) -> str:
    """The estimator, with what it centres if it does: "pps", "pps/lowrank"."""
    return estimator if center in (None, "none") or estimator == "full" else f"{estimator}/{center}"
