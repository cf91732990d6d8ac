"""A table as LaTeX, in the manner of the package booktabs."""

from __future__ import annotations

import pandas as pd

_ESCAPED = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"±": r"$\pm$", "×": r"$\times$", "−": "$-$", "–": "--", "÷": r"$\div$"},
}


def latex(text: pd.DataFrame, words: int = 2) -> str:
    """The tabular environment of a table of text cells.

    Args:
        words: so many first columns stand to the left, the others to the right.
    """
    lines = [" & ".join(map(escaped, row)) + r" \\" for row in text.itertuples(index=False)]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{'l' * words}{'r' * (text.shape[1] - words)}}}",
            r"\toprule",
            " & ".join(map(escaped, text.columns)) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def escaped(cell: str) -> str:
    """A cell in which nothing is read as a command."""
    return "".join(_ESCAPED.get(sign, sign) for sign in str(cell))
