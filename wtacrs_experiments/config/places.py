"""Where the project's files lie."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
ROOT = PACKAGE.parent  # a clone; or where packages are installed
CONF = PACKAGE / "conf"  # in a clone a link to the folder conf/
PAPER = PACKAGE / "reports" / "paper_data"  # numbers of arXiv 2305.15265, as CSV
