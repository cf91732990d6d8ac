"""The page itself: one file of HTML that holds its styles, scripts, plots and tables."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from wtacrs_experiments.reports.page import curves, grids, plots
from wtacrs_experiments.reports.page.folder import Folder
from wtacrs_experiments.reports.page.origins import failure, origin
from wtacrs_experiments.reports.tables import SCORES

FILES = Path(__file__).parent / "files"


def render(folder: Folder) -> str:
    """The page of a folder. What records say is escaped wherever it stands."""
    tables = [grids.scores(folder), grids.measures(folder)]
    drawn = {"groups": plots.groups(folder), "curves": curves.curves(folder)}
    copies = {
        table.name: {
            "frame": table.frame,
            "rows": [{"latex": line.latex, "csv": line.csv} for line in table.lines],
        }
        for table in tables
    }
    return (
        _environment()
        .get_template("page.html")
        .render(
            folder=folder,
            score=SCORES[folder.protocol],
            tables=tables,
            content={**drawn, "copies": copies},
            origins={name: origin(name, record) for name, record in folder.records.items()},
            failures={
                name: failure(record)
                for name, record in folder.records.items()
                if record.status != "completed"
            },
            plotly=Markup(get_plotlyjs()),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(FILES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False}
    environment.globals["source"] = lambda name: Markup((FILES / name).read_text(encoding="utf-8"))
    return environment
