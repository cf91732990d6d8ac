"""One static page from a folder of records: python -m experiments.reports.page FOLDER."""
