"""python run.py estimator=wtacrs task=sst2, or -m for a sweep: ``wtacrs run`` of this clone."""

import sys

from wtacrs_experiments.main import main

if __name__ == "__main__":
    sys.exit(main())
