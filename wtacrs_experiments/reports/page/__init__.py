"""One static page from a folder of records: python -m wtacrs_experiments.reports.page FOLDER."""
