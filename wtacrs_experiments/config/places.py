"""Where the project's files lie."""

import os
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
ROOT = PACKAGE.parent  # a clone; or where packages are installed
CONF = PACKAGE / "conf"  # in a clone a link to the folder conf/
PAPER = PACKAGE / "reports" / "paper_data"  # numbers of arXiv 2305.15265, as CSV
RUN_FILE = "run.json"  # a run's config, beside the model that it trained
MODELS = Path("~/.cache/wtacrs")  # of make models, unless WTACRS_MODELS=FOLDER says where


def model_folder(path: str) -> Path:
    """The folder that ``model.path`` names: ~ is the home, and WTACRS_MODELS stands in for MODELS.

    So a run has one name wherever its model lies.
    """
    elsewhere = os.environ.get("WTACRS_MODELS")
    if elsewhere and Path(path).is_relative_to(MODELS):
        return (Path(elsewhere) / Path(path).relative_to(MODELS)).expanduser()
    return Path(path).expanduser()
