"""MNAC: how many of the 40 attributes, as the oracle sees them, does a counterfactual change on average?"""

from functools import partial

from dime.core.cli import run
from dime.core.metrics.mnac import MNAC
from dime.core.metrics.scripts import run_metric

main = partial(run_metric, MNAC, __doc__)

if __name__ == "__main__":
    run(main)
